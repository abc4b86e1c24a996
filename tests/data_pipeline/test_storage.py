"""Files at URLs: read on after failures, fetched whole or not at all, and given up in time."""

import hashlib
import io
import random
import resource
import sys
import time
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import DataError, RecipeError, ResourceError
from data_pipeline.persistence import LONGEST_DEADLINE, Patience, persist
from data_pipeline.storage import (
    fetch,
    is_url,
    join,
    list_files,
    mask_secrets,
    open_binary,
    remote_file,
    require_no_secrets,
)
from tests.data_pipeline.web import serving

CONTENT = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAULTS = ["drop", "garbage", "short", 500, 503, 429]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of a millisecond, so that a test of many attempts is no long one."""
    monkeypatch.setattr(Patience, "wait", lambda self, attempt: 0.001)
    monkeypatch.setattr("data_pipeline.storage.BLOCK", 1 << 16)
    monkeypatch.setattr("data_pipeline.storage.BUFFER", 1 << 14)


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "www"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "x.bin").write_bytes(CONTENT)
    (folder / "a" / "b" / "y.txt").write_text("why")
    with serving(folder) as web:
        yield web


@pytest.fixture
def short_deadline(monkeypatch):
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "0.5")
    monkeypatch.setenv("ONWARD_REMOTE_TIMEOUT", "0.2")


@pytest.mark.parametrize(
    ("location", "url"),
    [("s3://a/b", True), ("http://a", True), ("memory://x", True), ("stage:prepare/x", False),
     ("/a/b", False), ("a/b.jsonl", False), ("C:/x", False)],
)  # fmt: skip
def test_what_is_a_url(location, url):
    assert is_url(location) is url


def test_names_are_joined_before_a_query():
    assert join("s3://b/folder/", "x.bin") == "s3://b/folder/x.bin"
    assert join("http://h/f?sig=1", "x.bin") == "http://h/f/x.bin?sig=1"


@pytest.mark.parametrize(
    ("text", "masked"),
    [("http://me:pw@h/p?token=abc#f: no", "http://***@h/p?***: no"),
     ("s3://bucket/a b@c", "s3://bucket/a b@c"),
     ("see 'https://tok@h/x', or http://h/y?k=v.", "see 'https://***@h/x', or http://h/y?***."),
     ("ftp://me:p@ss@h/x: no", "ftp://***@h/x: no"),
     ("(http://h/x?for=a;b&c=d,e)f'g&sig=h)", "(http://h/x?***)"),
     ("an e-mail to me@home", "an e-mail to me@home")],
)  # fmt: skip
def test_secrets_are_masked(text, masked):
    assert mask_secrets(text) == masked


def test_a_recipe_holds_no_password():
    require_no_secrets("s3://bucket/x?versionId=3")
    with pytest.raises(RecipeError, match=r"\*\*\*@h") as caught:
        require_no_secrets("ftp://me:hunter2@h/x")
    assert "hunter2" not in str(caught.value)


def test_waits_grow_and_are_drawn_from_all_between(monkeypatch):
    monkeypatch.undo()
    patience = Patience(first=0.5, longest=30.0)
    for attempt, most in ((1, 0.5), (3, 2.0), (40, 30.0)):
        waits = [patience.wait(attempt) for _ in range(300)]
        assert 0.0 <= min(waits) < most / 4 < most * 3 / 4 < max(waits) <= most


def test_the_deadline_ends_before_a_collective_does():
    from engine.distributed import LIMIT

    assert Patience().deadline < LONGEST_DEADLINE < LIMIT.total_seconds()


@pytest.mark.parametrize("given", ["soon", "0", "-3", "1e9", "nan"])
def test_a_deadline_that_makes_no_sense(given):
    with pytest.raises(RecipeError, match=f"ONWARD_REMOTE_DEADLINE={given}"):
        Patience.from_environment({"ONWARD_REMOTE_DEADLINE": given})
    kept = Patience.from_environment({"ONWARD_REMOTE_TIMEOUT": "5"})
    assert (kept.timeout, kept.deadline) == (5.0, 300.0)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.sampled_from(["drop", "fine", 500, 503]), max_size=8),
    ranges=st.booleans(),
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=3),
)
def test_reading_goes_on_where_it_broke(web, faults, ranges, cuts):
    web.faults["/a/x.bin"] = deque(faults)
    web.ranges = ranges
    with open_binary(f"{web.url}/a/x.bin") as file:
        for cut in cuts:
            file.seek(cut)
            assert file.read(1000) == CONTENT[cut : cut + 1000]
        file.seek(0)
        assert file.read() == CONTENT
        assert file.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert file.read() == CONTENT[-5:]


def test_a_file_that_changes_while_it_is_read_is_refused(web):
    with open_binary(f"{web.url}/a/x.bin") as file:
        assert file.read(10) == CONTENT[:10]
        (web.folder / "a" / "x.bin").write_bytes(CONTENT[:-1])
        web.faults["/a/x.bin"] = deque([500])
        file.seek(len(CONTENT) - 10)
        with pytest.raises(DataError, match=r"x\.bin: it was changed while it was read"):
            file.read()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults=st.lists(st.sampled_from(FAULTS), max_size=4), ranges=st.booleans())
def test_what_is_fetched_is_right_whatever_went_wrong(web, tmp_path, faults, ranges):
    web.faults["/a/x.bin"] = deque(faults)
    web.ranges = ranges
    target = tmp_path / "x.bin"
    fetch(f"{web.url}/a/x.bin", target, len(CONTENT), SHA256)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.bin"]


@pytest.mark.parametrize("fault", ["garbage", "other size"])
def test_wrong_bytes_each_time_are_named_with_both_digests(web, tmp_path, fault):
    target = tmp_path / "x.bin"
    if fault == "garbage":
        web.always["/a/x.bin"] = "garbage"
        told = rf"sha256 [0-9a-f]{{64}}, expected {len(CONTENT)} bytes with sha256 {SHA256}"
    else:
        (web.folder / "a" / "x.bin").write_bytes(CONTENT[:-1])
        told = rf"{len(CONTENT) - 1} bytes, expected {len(CONTENT)} bytes with sha256 {SHA256}"
    with pytest.raises(DataError, match=told) as caught:
        fetch(f"{web.url}/a/x.bin", target, len(CONTENT), SHA256)
    assert f"{web.url}/a/x.bin: given up after 5 attempts" in str(caught.value)
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["drop", "short", "hang", 500])
def test_a_remote_that_stays_broken_is_given_up_by_the_deadline(
    web, tmp_path, short_deadline, fault
):
    web.always["/a/x.bin"] = fault
    began = time.monotonic()
    with pytest.raises(DataError, match=r"/a/x\.bin: given up after \d+ attempts? in [01] s"):
        fetch(f"{web.url}/a/x.bin", tmp_path / "x.bin", len(CONTENT), SHA256)
    assert time.monotonic() - began < 10  # no timing: it came back at all, and not after 300 s
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_no_reason_to_try_again(web, status):
    web.always["/a/x.bin"] = status
    with pytest.raises(DataError, match=rf"/a/x\.bin: refused with status {status}"):
        open_binary(f"{web.url}/a/x.bin")
    assert web.requests["/a/x.bin"] == 1


def test_no_server_there(short_deadline):
    with pytest.raises(DataError, match=r"http://\*\*\*@127.0.0.1:1/x\?\*\*\*: given up") as caught:
        remote_file("http://me:hunter2@127.0.0.1:1/x?sig=hunter2")
    assert "hunter2" not in str(caught.value)


def test_no_name_for_what_does_not_fit_on_the_disk(web, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="cannot be written"):
            fetch(f"{web.url}/a/x.bin", tmp_path / "x.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["www"]


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("http://h/x", "aiohttp", "http"), ("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gs")],
)
def test_a_driver_that_is_absent_is_named_with_its_extra(monkeypatch, url, module, extra):
    import fsspec.registry  # noqa: F401

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"fsspec.implementations.{extra}", raising=False)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition("://")[0], raising=False)
    with pytest.raises(
        DataError, match=rf"{url}: its driver is not installed .*'onward\[{extra}\]'"
    ):
        open_binary(url)


def test_a_protocol_that_nobody_knows():
    with pytest.raises(DataError, match="nope://x: Protocol not known"):
        open_binary("nope://x")


def test_an_error_of_ours_is_not_tried_again():
    calls = []

    def act():
        calls.append(1)
        raise ResourceError("full")

    with pytest.raises(ResourceError, match="full"):
        persist("s3://x", act, Patience())
    assert len(calls) == 1


def test_folders_and_patterns_are_listed_by_name(web):
    found = list_files(f"{web.url}/a/")
    assert [(file.name, file.bytes) for file in found] == [("b/y.txt", 3), ("x.bin", len(CONTENT))]
    assert [file.name for file in list_files(f"{web.url}/a/*.bin")] == ["x.bin"]
    assert [file.url for file in list_files(f"{web.url}/a/x.bin")] == [f"{web.url}/a/x.bin"]
    with pytest.raises(DataError, match="no file there"):
        list_files(f"{web.url}/a/*.parquet")


def test_other_stores_are_read_the_same(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/storage-test/b/two.txt", b"two")
    store.pipe("/storage-test/one.txt", b"one")
    found = list_files("memory://storage-test")
    assert [(file.name, file.bytes) for file in found] == [("b/two.txt", 3), ("one.txt", 3)]
    assert all(file.version for file in found)
    assert [f.name for f in list_files("memory://storage-test/**/t*.txt")] == ["b/two.txt"]
    with open_binary(found[0].url) as file:
        assert file.read() == b"two"
    fetch(found[1].url, tmp_path / "one", 3, hashlib.sha256(b"one").hexdigest())
    assert (tmp_path / "one").read_bytes() == b"one"
    with pytest.raises(DataError, match="memory://storage-test/three"):
        open_binary("memory://storage-test/three")
    with pytest.raises(DataError, match="a folder; expected a file"):
        remote_file("memory://storage-test/b")


def test_local_files_open_too(tmp_path):
    (tmp_path / "x").write_bytes(b"here")
    with open_binary(tmp_path / "x") as file:
        assert file.read() == b"here"
    with pytest.raises(DataError, match="No such file"):
        open_binary(str(tmp_path / "y"))
