"""Texts become rows with their tokenizer's specials, cut at the length."""

import pytest
from transformers import AutoTokenizer

from configs.errors import DataError
from downstream.encoding import encode, padding_id
from downstream.tasks.rows import LabelledRow, TaskData
from tests.downstream import tiny

FINGERPRINT = "f" * 64


def task(text: str) -> TaskData:
    sides = {s: [LabelledRow("i", "g", text, "b")] for s in ("train", "dev", "test")}
    return TaskData(sides, ["a", "b"], [], {})


@pytest.fixture
def tokenizer(tmp_path):
    return AutoTokenizer.from_pretrained(tiny.tokenizer_folder(tmp_path / "tokenizer"))


def test_a_row(tokenizer):
    (row,) = encode(task("w0 w3 unheard"), tokenizer, 16, FINGERPRINT)["dev"]
    assert row.tokens.tolist() == [1, 5, 8, 4, 2]
    assert row.special.tolist() == [True, False, False, False, True]
    assert row.positions.tolist() == [0, 1, 2, 3, 4]
    assert set(row.segments) == {1}
    assert row.label == 1
    assert row.key.digest == (1 << 63) - 1


def test_a_long_row_keeps_its_specials(tokenizer):
    (row,) = encode(task("w0 " * 40), tokenizer, 8, FINGERPRINT)["train"]
    assert row.tokens.tolist() == [1, *[5] * 6, 2]


def test_a_row_without_tokens_is_named(tokenizer):
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="train row 'i' has no tokens"):
        encode(task("  "), tokenizer, 8, FINGERPRINT)


def test_padding_falls_back_to_an_id_that_nothing_attends_to(tokenizer):
    assert padding_id(tokenizer) == 0
    tokenizer.pad_token = "[SEP]"
    assert padding_id(tokenizer) == 2
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == 0
