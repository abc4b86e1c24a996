"""Cleaning: one spelling, no text twice, whole groups on one side."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import DataError
from data_pipeline.cleaning import (
    CleanTask,
    Split,
    Splitter,
    clean_part,
    first_occurrences,
    normalise,
    read_names,
    text_digest,
)
from data_pipeline.example import Document
from data_pipeline.sources import Rejected

NOISE = st.text(st.sampled_from("ab\u0301\u00e9 \t\n\r\x00\x0b\x85\u2028\ud800\ufeff\u200b。"))


@settings(max_examples=200, deadline=None)
@given(st.one_of(NOISE, st.text(st.characters(exclude_categories=[]))))
def test_normalising_is_idempotent_and_gives_what_can_be_written(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once.encode().decode() == once
    assert "\r" not in once
    assert "\x00" not in once
    assert once == once.strip()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("e\u0301", "é"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("  indented:\n    stays \t\n", "indented:\n    stays"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("a\x00b\x1bc\ufeffd", "abcd"),
        ("\ud83d alone", "\ufffd alone"),
        (" \n\t", ""),
        ("tab\there", "tab\there"),
    ],
)
def test_normal_forms(given, expected):
    assert normalise(given) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), max_size=40))
def test_the_first_of_equal_texts_stays(texts):
    found = first_occurrences(b"".join(map(text_digest, texts)))
    assert found.tolist() == [text not in texts[:i] for i, text in enumerate(texts)]


def test_digests_that_share_a_half_are_told_apart():
    one, two, three = bytes(16), bytes(8) + b"\x01" * 8, b"\x01" * 8 + bytes(8)
    assert first_occurrences(one + two + three + two).tolist() == [True, True, True, False]


def test_a_share_of_groups_is_held_out():
    groups = [f"file{i}" for i in range(4000)]
    held = {g for g in groups if Splitter(1, share=0.1).side(g) == "held_out"}
    assert abs(len(held) / len(groups) - 0.1) < 0.02
    assert held == {g for g in groups if Splitter(1, share=0.1).side(g) == "held_out"}
    more = {g for g in groups if Splitter(1, share=0.2).side(g) == "held_out"}
    assert held < more
    assert held != {g for g in groups if Splitter(2, share=0.1).side(g) == "held_out"}


def test_named_groups_are_held_out(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"held_out": ["a", "b"]}))
    splitter = Split(groups=str(path)).build(Path, seed=1)
    assert [splitter.side(g) for g in "abc"] == ["held_out", "held_out", "train"]


@pytest.mark.parametrize("content", ["", "[]", '{"held_out": "a"}', '{"held_out": [1]}', "{}"])
def test_a_groups_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"groups\.json: "):
        Split(groups=str(path)).build(Path, seed=1)


@pytest.mark.parametrize("values", [{}, {"held_out": 0.1, "groups": "x"}, {"held_out": 1.0}])
def test_a_split_is_one_thing_or_the_other(values):
    with pytest.raises(ValidationError):
        Split(**values)


class FixedPart:
    """A part made of what it is given."""

    def __init__(self, *items):
        self.items = items

    def read(self):
        return iter(self.items)


def test_a_part_is_normalised_split_and_counted(tmp_path):
    documents = [Document(t, t, g) for t, g in (("a\r\n", "x"), (" ", "x"), ("b", "y"))]
    part = FixedPart(documents[0], Rejected("f:1", "bad"), *documents[1:])
    splitter = Splitter(0, groups=frozenset("y"))
    done = clean_part(CleanTask(part, splitter, tmp_path / "0", None))
    texts = {s: [t for b in side.blocks for t in b.read()] for s, side in done.sides.items()}
    assert texts == {"train": ["a"], "held_out": ["b"]}
    assert done.sides["train"].digests == text_digest("a")
    assert (done.documents, done.empty, len(done.rejected)) == (3, 1, 1)
    assert list(read_names(done.sides["train"].names)) == ["a\r\n"]
    assert (done.removed, done.changed, done.sides["train"].signatures) == (None, {}, None)


def test_reading_stops_when_too_much_is_rejected(tmp_path):
    part = FixedPart(*[Rejected(f"f:{i}", "bad") for i in range(9)], Document("a", "a", "a"))
    done = clean_part(CleanTask(part, Splitter(0), tmp_path / "0", 2))
    assert (done.documents, len(done.rejected)) == (0, 3)


def test_texts_come_back_from_the_spool_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.spool.BLOCK_BYTES", 100)
    texts = [f"{i} é " * (i % 7 + 1) for i in range(60)]
    part = FixedPart(*[Document(t, t, t) for t in texts])
    blocks = clean_part(CleanTask(part, Splitter(0), tmp_path / "0", 0)).sides["train"].blocks
    assert len(blocks) > 10
    assert [t for block in reversed(blocks) for t in reversed(list(block.read()))] == [
        t.strip() for t in reversed(texts)
    ]
    assert np.all([block.texts for block in blocks])
