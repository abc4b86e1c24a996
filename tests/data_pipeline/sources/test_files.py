"""What a path may name: a file, a folder, a glob, a URL of any of them."""

import gzip
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest

from configs.errors import DataError
from data_pipeline.sources import ArrowSource, CsvSource, JsonlSource, ParquetSource, TextSource
from tests.data_pipeline.sources.formats import as_arrow, as_csv, as_jsonl, as_parquet

FILES = ["b/2.jsonl", "a.jsonl", "b/c/3.jsonl.gz", "b/readme.md", ".hidden.jsonl"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = as_jsonl([{"text": name}])
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return root


def names(path, locate=Path):
    source = JsonlSource(path=str(path))
    found = [file.name for file in source.files(locate)]
    # The text of a file is its own name, below the folder.
    read = [Path(document.text).name for document in source.documents(locate)]
    assert read == [Path(name).name for name in found]
    return found


def test_a_glob_takes_what_matches_by_name(folder):
    assert names(folder / "*.jsonl") == ["a.jsonl"]
    assert names(folder / "**" / "*.jsonl*") == ["a.jsonl", "b/2.jsonl", "b/c/3.jsonl.gz"]
    assert names(folder / "b" / "**" / "*") == ["2.jsonl", "c/3.jsonl.gz"]
    assert names(folder / "?" / "[0-9].jsonl") == ["b/2.jsonl"]
    assert names(folder) == [".hidden.jsonl", "a.jsonl", "b/2.jsonl", "b/c/3.jsonl.gz"]


def test_a_relative_glob_and_one_in_a_stage(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names("*.jsonl") == ["a.jsonl"]
    assert names("b/*.jsonl") == ["2.jsonl"]

    def locate(location):
        return folder / location.removeprefix("stage:rows").lstrip("/")

    assert names("stage:rows/b/*.jsonl", locate) == ["2.jsonl"]


def test_a_name_with_brackets_is_itself_if_it_exists(folder):
    (folder / "b[1].jsonl").write_bytes(as_jsonl([{"text": "b[1].jsonl"}]))
    assert names(folder / "b[1].jsonl") == ["b[1].jsonl"]


def test_a_glob_that_matches_nothing_of_use(folder):
    with pytest.raises(DataError, match=r"nothing\*: no file ending in \.jsonl, .* matches$"):
        names(folder / "nothing*")
    with pytest.raises(DataError, match=r"no file ending in .* matches; 1 others match"):
        names(folder / "b" / "*.md")
    with pytest.raises(DataError, match="nothing is there"):
        names(folder / "nowhere")


def test_links_are_followed_and_each_folder_is_read_once(folder, tmp_path):
    for name in ("outside/5.jsonl", "outside/deep/6.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_jsonl([{"text": path.name}]))
    before = names(folder)
    (folder / "x").symlink_to(tmp_path / "outside")
    (folder / "y").symlink_to(tmp_path / "outside" / "deep")
    assert names(folder) == [*before, "x/5.jsonl", "y/6.jsonl"]
    (tmp_path / "outside" / "back").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder)
    (folder / "0-latest").symlink_to(folder / "b")
    assert names(folder) == [*before, "x/5.jsonl", "y/6.jsonl"]


@pytest.mark.parametrize("pattern", ["", "*", "**/*.jsonl"])
def test_a_link_to_nothing_is_not_passed_over(folder, pattern):
    (folder / "gone.jsonl").symlink_to(folder / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: a link that leads nowhere"):
        names(folder / pattern)


def test_a_folder_that_cannot_be_looked_into_is_told(folder, monkeypatch):
    real = os.scandir

    def closed(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"b/c: cannot be looked into \(Permission denied"):
        names(folder)


@pytest.mark.parametrize("pattern", ["", "*", "*.jsonl"])
def test_a_name_that_is_not_utf8_is_refused(folder, pattern):
    """Documents are named by it, and no JSON line, log or digest could hold it."""
    with open(os.fsencode(folder) + b"/\xd6\xd0.jsonl", "wb") as stream:  # noqa: PTH123
        stream.write(as_jsonl([{"text": "a"}]))
    with pytest.raises(DataError, match=r"\\xd6\\xd0\.jsonl: the name of a file must be UTF-8"):
        names(folder / pattern)


def test_many_small_files_are_few_parts(tmp_path):
    for at in range(150):
        (tmp_path / f"{at:03d}.jsonl").write_bytes(as_jsonl([{"text": str(at)}]))
    source = JsonlSource(path=str(tmp_path))
    parts = source.parts(Path)
    assert len(parts) == 3
    read = chain.from_iterable(part.read() for part in parts)
    assert [document.text for document in read] == list(map(str, range(150)))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Where a server of this machine shows ``tmp_path``; it knows no ranges."""
    pytest.importorskip("aiohttp", reason="the extra `http`")
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "5")
    monkeypatch.setenv("no_proxy", "*")
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    thread.join()
    served.server_close()


ROWS = [{"text": f"{at} 文本 🎉"} for at in range(50)]
REMOTE = {
    "r.jsonl": (JsonlSource, as_jsonl(ROWS)),
    "r.jsonl.gz": (JsonlSource, gzip.compress(as_jsonl(ROWS))),
    "r.csv": (CsvSource, as_csv(ROWS)),
    "r.parquet": (ParquetSource, as_parquet(ROWS)),
    "r.arrow": (ArrowSource, as_arrow(ROWS)),
    "r.ipc": (ArrowSource, as_arrow(ROWS, "file")),
}


@pytest.mark.parametrize("name", REMOTE)
def test_a_url_gives_the_same_documents_as_the_file(tmp_path, server, name):
    kind, content = REMOTE[name]
    (tmp_path / name).write_bytes(content)
    remote, local = kind(path=f"{server}/{name}"), kind(path=str(tmp_path / name))
    remote.check(Path)
    assert list(remote.documents(Path)) == list(local.documents(Path))
    assert remote.digest(Path) == local.digest(Path)
    (file,) = remote.files(Path)
    before = file.stamp()
    assert before == file.stamp()
    (tmp_path / name).write_bytes(content + b"\n")
    assert file.stamp() != before


def test_a_folder_and_a_glob_behind_a_url(folder, server):
    assert names(f"{server}/data/b/") == ["2.jsonl", "c/3.jsonl.gz"]
    assert names(f"{server}/data/*.jsonl") == [".hidden.jsonl", "a.jsonl"]
    with pytest.raises(DataError, match=r"/data/b/: no file ending in \.csv, .*; 3 others are"):
        CsvSource(path=f"{server}/data/b/").check(Path)


def test_a_url_that_leads_nowhere(server, tmp_path):
    with pytest.raises(DataError, match=f"{server}/nothing.jsonl"):
        JsonlSource(path=f"{server}/nothing.jsonl").check(Path)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS))[:-30])
    with pytest.raises(DataError, match=f"{server}/rows.jsonl.gz: cut short or damaged"):
        list(JsonlSource(path=f"{server}/rows.jsonl.gz").documents(Path))


def test_a_file_url_and_one_of_memory(tmp_path):
    import fsspec

    (tmp_path / "a.txt").write_text("one")
    found = list(TextSource(path=f"file://{tmp_path}/*.txt").documents(Path))
    assert [(d.text, d.id) for d in found] == [("one", "a.txt")]
    with fsspec.open("memory://sources/x/b.txt", "wb") as stream:
        stream.write(b"zwei")
    (found,) = TextSource(path="memory://sources/").documents(Path)
    assert (found.text, found.id) == ("zwei", "x/b.txt")
    with pytest.raises(DataError, match="nosuch"):
        JsonlSource(path="nosuch://x/y.jsonl").check(Path)
