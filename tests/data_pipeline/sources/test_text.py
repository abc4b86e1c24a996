"""Plain text: files or paragraphs."""

from pathlib import Path

import pytest

from configs.errors import DataError
from data_pipeline.sources import TextSource


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
def test_what_is_not_utf8_is_named(folder, documents_are):
    (folder / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt:2: not UTF-8 at byte 3 of the line \(0xe9\)"):
        told(folder, documents_are=documents_are)
