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
    Evaluation,
    Guard,
    NearDuplicates,
    Split,
    Splitter,
    clean_part,
    normalise,
    read_names,
    read_signatures,
    text_digest,
)
from data_pipeline.cleaning.filters import Contains, Length
from data_pipeline.cleaning.normalise import _DROPPED, _LINE_END, _SURROGATES
from data_pipeline.cleaning.removal import summed
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
        ("a page\x0cthe next\x0bline", "a page\nthe next\nline"),
        ("end.\n\x0c\nNext", "end.\n\nNext"),
        ("\ud83d alone", "\ufffd alone"),
        (" \n\t", ""),
        ("tab\there", "tab\there"),
    ],
)
def test_normal_forms(given, expected):
    assert normalise(given) == expected


ODD = [
    ("👩\u200d👩\u200d👧 🏳️\u200d🌈", None),
    ("می\u200cخواهم שָׁלוֹם \u202bשלום\u202c", None),
    ("क्\u200dष นี้ ｈａｌｆ ﬁ ² ①", None),
    ("a" + "\u0301" * 500, "á" + "\u0301" * 499),
    ("x" * 100_000, None),
    ("a\ufeffb\ufffec\U0001fffe", "abc"),
    (b"caf\xe9 \xff".decode(errors="surrogateescape"), "caf\ufffd \ufffd"),
    (b"caf\xe9".decode(errors="replace"), None),
    ("\x00\x00", ""),
    ("\u1112\u1161\u11ab", "한"),
]


@pytest.mark.parametrize(("given", "expected"), ODD)
def test_odd_texts_come_through(given, expected):
    assert normalise(given) == (given if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" " * 200_000 + "x", "x"),
        ("a" + "\t \u2003" * 70_000 + "b", None),
        ("a" + " " * 200_000 + "\n\n\n\nb", "a\n\nb"),
        ("\r" * 200_000, ""),
    ],
)
def test_long_runs_of_space_take_no_longer_than_others(text, expected):
    # A pattern that looks for space before a line end tries every place of a run: minutes.
    assert normalise(text) == (text if expected is None else expected)


def test_looking_for_unusual_characters_agrees_with_the_patterns():
    for code in [*range(0x300), 0x2028, 0xFEFF, 0xFDD0, 0xFFFE, 0x1FFFF, 0xD800, 0x200D, 0x4E00]:
        for around in ("a{}b", "é{}b"):
            text = around.format(chr(code))
            plain = _SURROGATES.sub("\ufffd", _DROPPED.sub("", _LINE_END.sub("\n", text)))
            expected = unicodedata.normalize("NFC", plain)
            assert normalise(text) == "\n".join(map(str.rstrip, expected.split("\n"))).strip()


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


def test_a_folder_is_no_file_of_groups(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read .*expected a file of names"):
        Split(groups=str(tmp_path)).build(Path, seed=1)


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


ROWS = [
    "alpha beta gamma",
    "no",
    "the answer is here",
    "held out words",
    "spam spam",
    " ",
    "ok then",
]


def cleaned(folder, documents, *, strict=False, near=None):
    Evaluation.of([("row 1", "The Answer is here!"), ("row 2", "held out words")]).save(
        folder / "g"
    )
    filters = (Length(min_characters=3), Contains(pattern="spam", reason="spam"))
    splitter = Splitter(0, groups=frozenset(["h"]))
    guard = Guard(folder / "g", strict)
    task = CleanTask(FixedPart(*documents), splitter, folder / "0", None, filters, guard, near)
    return clean_part(task)


def texts_of(side):
    return [text for block in side.blocks for text in block.read()]


def test_what_is_left_out_is_counted_and_logged(tmp_path):
    documents = [Document(t, f"d{i}", "h" if t[:4] == "held" else "t") for i, t in enumerate(ROWS)]
    done = cleaned(tmp_path, documents)
    train, held_out = done.sides["train"], done.sides["held_out"]
    assert texts_of(train) == ["alpha beta gamma", "ok then"]
    assert list(read_names(train.names)) == ["d0", "d6"]
    # What is held out may hold what must not be trained on.
    assert (texts_of(held_out), held_out.removed) == (["held out words"], {})
    assert train.removed == {
        "length": {"too_few_characters": 1},
        "decontaminate": {"equal": 1},
        "contains": {"spam": 1},
    }
    lines = [json.loads(line) for line in done.removed.read_text().splitlines()]
    found = {line["id"]: (line["step"], line["reason"], line["detail"]) for line in lines}
    assert found == {
        "d1": ("length", "too_few_characters", "2"),
        "d2": ("decontaminate", "equal", "row 1"),
        "d4": ("contains", "spam", "spam"),
    }
    assert {line["side"] for line in lines} == {"train"}
    assert lines[-1]["head"] in ROWS
    assert (done.documents, done.empty, done.contaminated, done.refused) == (7, 1, (), 0)


def test_a_strict_guard_tells_the_first_documents(tmp_path):
    documents = [Document(ROWS[2], f"d{i}", "t") for i in range(9)]
    done = cleaned(tmp_path, documents, strict=True)
    assert [name for name, _ in done.contaminated] == [f"d{i}" for i in range(5)]
    assert (done.contaminated[0][1].row, done.refused) == ("row 1", 9)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.sampled_from([*ROWS, "x" * 50_000, "中文 文本"]), max_size=30))
def test_counts_add_up_and_signatures_are_those_of_the_texts(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    near = NearDuplicates(ngram=2)
    documents = [Document(t, f"d{i}\n", f"g{i % 3}") for i, t in enumerate(texts)]
    done = cleaned(folder, documents, near=near)
    removed = summed(side.removed for side in done.sides.values())
    gone = sum(count for reasons in removed.values() for count in reasons.values())
    left = [texts_of(side) for side in done.sides.values()]
    assert done.documents == len(texts) == done.empty + gone + sum(map(len, left))
    for side, own in zip(done.sides.values(), left, strict=True):
        assert np.array_equal(read_signatures(side.signatures, near), near.signatures(own))
        assert [texts[int(name[1:])].strip() for name in read_names(side.names)] == own
        assert side.digests == b"".join(map(text_digest, own))


def test_an_earlier_log_is_not_taken_for_this_one(tmp_path):
    assert cleaned(tmp_path, [Document("no", "d", "t")]).removed is not None
    assert cleaned(tmp_path, [Document("alpha beta", "d", "t")]).removed is None
    assert not (tmp_path / "0.removed.jsonl").exists()
