"""A file is written whole or not at all, and a place that cannot be written to is named."""

import errno
import os

import pytest

from configs.errors import ResourceError
from data_pipeline.whole_file import write_whole


def test_it_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    for content in (b"first", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "c.json"
    write_whole(path, b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"c\.json: cannot be written \(No space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"file/c\.json: cannot be written"):
        write_whole(tmp_path / "file" / "c.json", b"")
