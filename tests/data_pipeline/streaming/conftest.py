"""Shard folders whose every token says where it stands."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter, TokenizerRecord

TOKENIZER = TokenizerRecord(
    name="tiny",
    sha256="a" * 64,
    vocabulary_size=60_000,
    special={"pad": 0, "cls": 1, "sep": 2, "mask": 3},
    prefix=[1],
    suffix=[2],
)

MakeShards = Callable[..., str]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """(name, lengths, first token id, ...) -> location: ids count up through the data set."""

    def make(name, lengths, first=100, shard_tokens=150, provenance=None, **changes):
        folder = tmp_path / name
        record = TOKENIZER.model_copy(update=changes)
        tokens = np.arange(sum(lengths)) + first
        annotations = (tokens % 3 != 0).astype(np.uint8) * WORD_START
        with ShardWriter(folder, record, shard_tokens) as writer:
            writer.write(tokens, np.array(lengths, np.int32), annotations)
            writer.finish(provenance or {})
        return str(folder)

    return make
