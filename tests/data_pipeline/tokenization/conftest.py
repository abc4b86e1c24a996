"""A tokenizer of each kind, made once."""

from functools import lru_cache
from pathlib import Path

import pytest

from tests.data_pipeline.tokenization.kinds import config_of, texts


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Kind -> the folder of a tokenizer of that kind."""

    @lru_cache
    def make(kind):
        place = tmp_path_factory.mktemp(kind)
        config_of(kind, place).build(place / "tokenizer", Path, texts)
        return place / "tokenizer"

    return make
