"""Plain text: files or paragraphs."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_pipeline.sources import TextSource, lines


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffone\r\ntwo\n\n \n three\n".encode())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.txt").write_text("four", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "read.me").write_text("five")
    return tmp_path


def told(folder, **values):
    documents = TextSource(path=str(folder), **values).documents(Path)
    return [(d.text, d.id, d.group) for d in documents]


def test_files(folder):
    assert told(folder) == [
        ("four", "a/c.txt", "a/c.txt"),
        ("one\r\ntwo\n\n \n three\n", "b.txt", "b.txt"),
    ]
    assert told(folder, suffix=".me") == [("five", "read.me", "read.me")]


def test_paragraphs_and_their_groups(folder):
    found = told(folder, documents_are="paragraphs")
    assert found == [
        ("four", "a/c.txt:1", "a/c.txt"),
        ("one\r\ntwo\n", "b.txt:1", "b.txt"),
        (" three\n", "b.txt:5", "b.txt"),
    ]
    apart = told(folder, documents_are="paragraphs", groups_are="documents")
    assert [group for _, _, group in apart] == ["a/c.txt:1", "b.txt:1", "b.txt:5"]


@pytest.mark.parametrize("documents_are", ["files", "paragraphs"])
def test_what_is_not_utf8_is_named_and_counted(folder, documents_are):
    (folder / "latin.txt").write_bytes(b"one\ncaf\xe9\n\nnext\n")
    named = r"latin\.txt:2: not UTF-8 at byte 3 of the line \(0xe9\)"
    with pytest.raises(DataError, match=named):
        told(folder, documents_are=documents_are)
    left = told(folder, documents_are=documents_are, max_rejected=1)
    assert ("next\n", "latin.txt:4", "latin.txt") in left or documents_are == "files"
    whole = told(folder, documents_are=documents_are, encoding="latin-1")
    assert any("caf\xe9" in text for text, _, _ in whole)


CHINESE = "\n".join(["第一段,有字。", "还有一行", "\u3000", "第二段 with English", "", "𠀀 最后"])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_paragraphs_of_an_encoding(tmp_path, encoding, mark, small_parts):
    (tmp_path / "a.txt").write_bytes((mark + CHINESE).encode(encoding))
    found = told(tmp_path, documents_are="paragraphs", encoding=encoding)
    assert [text.rstrip("\n") for text, _, _ in found] == [
        "第一段,有字。\n还有一行",
        "第二段 with English",
        "𠀀 最后",
    ]
    assert [name for _, name, _ in found] == ["a.txt:1", "a.txt:4", "a.txt:6"]


@pytest.mark.parametrize("written", ["gb18030", "latin-1"])
def test_another_encoding_than_said_is_rejected_not_guessed(tmp_path, written):
    text = "caf\xe9 \xfc" if written == "latin-1" else CHINESE
    (tmp_path / "a.txt").write_bytes(text.encode(written))
    with pytest.raises(DataError, match=r"a\.txt:1: not UTF-8 .* or say its `encoding`"):
        told(tmp_path)


def test_packed_text(folder):
    (folder / "z.txt.gz").write_bytes(gzip.compress(b"gepackt\n"))
    assert told(folder, suffix=".txt.gz") == [("gepackt\n", "z.txt.gz", "z.txt.gz")]


@settings(max_examples=40, deadline=None)
@given(
    content=st.text("ab\u3000 \t\r\n\n\n\x1c", max_size=120),
    part=st.integers(1, 60),
    block=st.integers(1, 40),
)
def test_paragraphs_do_not_depend_on_where_a_file_is_cut(tmp_path_factory, content, part, block):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(content.encode())
    found = told(path, documents_are="paragraphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PART_BYTES", part)
        patch.setattr(lines, "BLOCK", block)
        assert told(path, documents_are="paragraphs") == found
    kept = "".join(text for text, _, _ in found)
    assert "".join(kept.split()) == "".join(content.split())


def test_a_long_paragraph_is_rejected_and_the_next_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("12345\n67890\n\nshort\n\n" + "x" * 30 + "\n\nend")
    found = told(tmp_path, documents_are="paragraphs", longest_record=11, max_rejected=2)
    assert [text for text, _, _ in found] == ["short\n", "end"]
    with pytest.raises(DataError, match=r"a\.txt:1: 12 bytes long; longest_record is 11"):
        told(tmp_path, documents_are="paragraphs", longest_record=11)
    with pytest.raises(DataError, match=r"a\.txt:1: 55 bytes long; longest_record is 54"):
        told(tmp_path, longest_record=54)
    assert len(told(tmp_path, longest_record=55)) == 1
