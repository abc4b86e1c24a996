"""Shards at a URL: one download a machine, bounded room, and nothing read that is not right."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, ResourceError
from data_pipeline.persistence import Patience
from data_pipeline.shards import CacheConfig, ShardedDataset, describe, find_shards
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.manifest import FileRecord, read_manifest
from data_pipeline.shards.opened import OPENED, OpenFiles
from tests.data_pipeline.shards.test_shards import flip, sequences, write
from tests.data_pipeline.web import serving

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Patience, "wait", lambda self, attempt: 0.001)
    monkeypatch.setattr("data_pipeline.shards.cache.SPARE", 0)
    yield
    OPENED.close_all_of(-1)


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "www"
    write(folder / "corpus", sequences())
    with serving(folder) as web:
        yield web


@pytest.fixture
def cache(tmp_path):
    return CacheConfig(folder=tmp_path / "cache")


def opened(web, cache, **options):
    return ShardedDataset.open(f"{web.url}/corpus", cache=cache, **options)


def objects(cache):
    return {path.name: path.stat().st_size for path in (cache.folder / "objects").iterdir()}


def payloads(web):
    """Requests for .bin and .ann files, by name."""
    return {
        Path(path).name: count
        for path, count in web.requests.items()
        if path.endswith((".bin", ".ann"))
    }


def require_all(data):
    for i, document in enumerate(sequences()):
        np.testing.assert_array_equal(data.tokens(i), document)
        np.testing.assert_array_equal(data.annotations(i), document % 4)


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_a_remote_folder_reads_like_a_local_one(web, cache, mode):
    data = opened(web, cache, mode=mode)
    local = ShardedDataset.open(web.folder / "corpus")
    assert not payloads(web)  # nothing but the manifest and the indices, yet
    assert (data.fingerprint, data.content) == (local.fingerprint, local.content)
    assert data.folder == f"{web.url}/corpus"
    assert data.mapped is (mode == "mmap")
    require_all(data)
    require_all(data)
    assert set(payloads(web).values()) == {1}
    for number in range(len(data.shards)):
        np.testing.assert_array_equal(data.shard_tokens(number), local.shard_tokens(number))


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_stretches_are_gathered_in_the_order_asked_for(tmp_path, mode):
    write(tmp_path, sequences())
    data = ShardedDataset.open(tmp_path, mode=mode)
    rng = np.random.default_rng(3)
    for number, shard in enumerate(data.shards):
        whole = ShardedDataset.open(tmp_path).shard_tokens(number)
        starts = rng.integers(0, len(whole) - 9, 30)
        lengths = rng.integers(0, 9, 30)
        starts[7:12] = starts[6] + np.cumsum(lengths[6:11])  # stretches that follow each other
        starts = np.minimum(starts, len(whole) - lengths)
        expected = np.concatenate([whole[s : s + n] for s, n in zip(starts, lengths, strict=True)])
        np.testing.assert_array_equal(data.gather(number, starts, lengths), expected)
        np.testing.assert_array_equal(
            data.gather_annotations(number, starts, lengths), expected % 4
        )
        nothing = np.zeros(0, np.int64)
        assert data.gather(number, nothing, nothing).dtype == data.shards[0].index.dtype
        with pytest.raises(IndexError):
            data.gather(number, np.array([shard.record.tokens - 1]), np.array([2]))


def test_what_was_prefetched_is_not_asked_for_again(web, cache):
    data = opened(web, cache)
    data.prefetch([1, 2])
    assert payloads(web) == {f"shard-0000{k}.{s}": 1 for k in (1, 2) for s in ("bin", "ann")}
    data.shard_tokens(1)
    data.shard_annotations(2)
    assert set(payloads(web).values()) == {1}


def test_threads_and_data_sets_share_one_download(web, cache):
    web.faults["/corpus/shard-00000.bin"].extend(["drop", 503])
    several = [opened(web, cache) for _ in range(4)]
    threads = [threading.Thread(target=require_all, args=(data,)) for data in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = {name: count for name, count in payloads(web).items() if count != 1}
    assert set(wrong) == {"shard-00000.bin"}
    require_all(opened(web, cache))


def test_the_same_content_elsewhere_is_the_same_file(web, cache):
    shutil.copytree(web.folder / "corpus", web.folder / "copy")
    require_all(opened(web, cache))
    web.requests.clear()
    require_all(ShardedDataset.open(f"{web.url}/copy", cache=cache))
    assert not payloads(web)


def test_the_room_is_bounded_and_the_oldest_goes_first(web, tmp_path):
    largest = max(path.stat().st_size for path in (web.folder / "corpus").glob("shard-*"))
    cache = CacheConfig(folder=tmp_path / "cache", bytes=2 * largest)
    data = opened(web, cache)
    rng = np.random.default_rng(1)
    for i in rng.integers(0, len(data), 25):
        np.testing.assert_array_equal(data.tokens(i), sequences()[i])
        assert sum(objects(cache).values()) <= 2 * largest
    assert max(payloads(web).values()) > 1  # some had to go, and come again


def records(web):
    """URL -> record of the .bin files, largest first."""
    manifest = read_manifest(web.folder / "corpus")
    found = {f"{web.url}/corpus/{shard.name}.bin": shard.files[".bin"] for shard in manifest.shards}
    return sorted(found.items(), key=lambda item: -item[1].bytes)


def closed(store, url, record):
    store.open(url, record, rehash=False).close()


def test_least_recently_used_goes_first_and_pinned_never(web, tmp_path):
    (one, a), (two, b), (three, c) = records(web)[:3]
    store = ShardCache(tmp_path / "cache", a.bytes + b.bytes + c.bytes - 1, lambda: False)
    there = tmp_path / "cache" / "objects"
    closed(store, one, a)
    closed(store, two, b)
    os.utime(there / a.sha256, (1, 1))
    os.utime(there / b.sha256, (2, 2))
    closed(store, one, a)  # used again: now b is the oldest
    closed(store, three, c)
    assert {path.name for path in there.iterdir()} == {a.sha256, c.sha256}
    with store.open(one, a, rehash=False), store.open(three, c, rehash=False):
        with pytest.raises(ResourceError) as caught:
            store.open(two, b, rehash=False)
        available = store.limit - a.bytes - c.bytes
        assert f"{b.bytes:,} bytes are needed for {two}, {available:,} are available" in str(
            caught.value
        )
        assert not list((tmp_path / "cache" / "fetching").glob("*.granted"))
    closed(store, two, b)


def test_what_was_evicted_while_it_was_opened_is_fetched_again(web, tmp_path, monkeypatch):
    url, record = records(web)[0]
    store = ShardCache(tmp_path / "cache", 1 << 20, lambda: False)
    closed(store, url, record)
    there = tmp_path / "cache" / "objects" / record.sha256
    lock = fcntl.flock

    def too_late(file, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        there.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with store.open(url, record, rehash=False):
        assert there.exists()  # pinned is what others find there, too
    assert payloads(web)[Path(url).name] == 2


def test_a_file_larger_than_the_room(web, tmp_path):
    cache = CacheConfig(folder=tmp_path / "cache", bytes=10)
    with pytest.raises(ResourceError, match=r"bytes are needed for http.*\.idx, 10 are available"):
        opened(web, cache)


def test_a_disk_without_room(web, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.shards.cache.SPARE", 1 << 60)
    with pytest.raises(ResourceError, match=r"are needed for .*, 0 are available"):
        opened(web, CacheConfig(folder=tmp_path / "cache"))


def test_own_open_files_are_closed_to_make_room(web, tmp_path, monkeypatch):
    files = OpenFiles()
    monkeypatch.setattr("data_pipeline.shards.read.OPENED", files)
    (_, a), (_, b), *_ = records(web)
    indices = sum(path.stat().st_size for path in (web.folder / "corpus").glob("*.idx"))
    cache = CacheConfig(folder=tmp_path / "cache", bytes=max(indices, a.bytes + b.bytes - 1))
    data = opened(web, cache)
    require_all(data)  # though it opened all of them without closing one itself


def test_a_cache_that_cannot_be_written_to(web, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        ResourceError, match=r"no cache can be kept there .* set data\.cache\.folder"
    ):
        opened(web, CacheConfig(folder=tmp_path / "cache"))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_what_was_damaged_in_the_cache_is_fetched_again(web, cache, damage, monkeypatch):
    monkeypatch.setattr(ShardCache, "_sound", set())
    url, record = records(web)[0]
    require_all(opened(web, cache))
    path = cache.folder / "objects" / record.sha256
    if damage == "flip":
        flip(path)
    else:
        os.truncate(path, record.bytes // 2)
    monkeypatch.setattr(ShardCache, "_sound", set())  # another process
    require_all(opened(web, cache, verify="digests"))
    assert payloads(web)[Path(url).name] == 2


@pytest.mark.parametrize("verify", ["sizes", "digests"])
def test_an_index_that_was_damaged_in_the_cache_is_fetched_again(web, cache, verify, monkeypatch):
    monkeypatch.setattr(ShardCache, "_sound", set())
    opened(web, cache)
    for path in (cache.folder / "objects").iterdir():
        flip(path)
    monkeypatch.setattr(ShardCache, "_sound", set())  # another process
    require_all(opened(web, cache, verify=verify))


def test_what_lies_in_the_cache_is_hashed_by_all_that_read_it(web, cache, monkeypatch):
    """A rank's share is of files that all ranks see; caches are of one machine each."""
    monkeypatch.setattr(ShardCache, "_sound", set())
    require_all(opened(web, cache))
    _, record = records(web)[0]
    flip(cache.folder / "objects" / record.sha256)
    monkeypatch.setattr(ShardCache, "_sound", set())  # another process
    require_all(opened(web, cache, verify="digests", share=slice(0, 0)))


def test_files_are_closed_when_too_many_are_open(web, cache, monkeypatch):
    require_all(opened(web, cache))
    files = OpenFiles()
    monkeypatch.setattr("data_pipeline.shards.read.OPENED", files)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, before[1]))
        data = opened_without_room(web, cache, held)
        for number in range(len(data.shards)):
            data.shard_tokens(number)
            data.shard_annotations(number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in held:
            os.close(descriptor)


def opened_without_room(web, cache, held):
    """Opened while there is room, of which all but three files' is taken then."""
    freed = [held.pop() for _ in range(len(held))]
    for descriptor in freed:
        os.close(descriptor)
    data = opened(web, cache, mode="pread")
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(3):
        os.close(held.pop())
    return data


@pytest.mark.parametrize("fault", ["garbage", "short", 500, "hang"])
def test_a_shard_that_cannot_be_had_is_named(web, cache, monkeypatch, fault):
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "0.6")
    monkeypatch.setenv("ONWARD_REMOTE_TIMEOUT", "0.25")
    web.always["/corpus/shard-00001.bin"] = fault
    data = opened(web, cache)
    with pytest.raises(DataError, match=r"/corpus/shard-00001\.bin: given up after"):
        data.shard_tokens(1)
    data.shard_tokens(0)
    assert not list((cache.folder / "fetching").glob("*.granted"))
    web.always.clear()
    assert len(data.shard_tokens(1)) == data.shards[1].record.tokens


def test_swapped_remote_shards_are_named(web, cache):
    a, b = (web.folder / "corpus" / f"shard-0000{k}.bin" for k in (0, 1))
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)
    data = opened(web, cache)
    with pytest.raises(DataError, match=r"shard-00000\.bin: given up .* expected \d+ bytes"):
        data.shard_tokens(0)


def test_a_manifest_of_garbage_is_asked_for_again(web, cache):
    web.faults["/corpus/manifest.json"].extend(["garbage", "short"])
    require_all(opened(web, cache))
    web.always["/corpus/manifest.json"] = "garbage"
    with pytest.raises(DataError, match=rf"{web.url}/corpus/manifest\.json"):
        opened(web, cache)


def test_no_manifest_there(web, cache):
    with pytest.raises(
        DataError, match=rf"{web.url}/nothing/manifest\.json: refused with status 404"
    ):
        ShardedDataset.open(f"{web.url}/nothing", cache=cache)


def test_describe_verifies_a_remote_folder(web, monkeypatch, tmp_path):
    monkeypatch.setenv("ONWARD_CACHE", str(tmp_path / "own"))
    told = describe(f"{web.url}/corpus")
    assert told["folder"] == f"{web.url}/corpus"
    assert (tmp_path / "own" / "shards" / "objects").is_dir()
    flip(web.folder / "corpus" / "shard-00002.ann")
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(DataError, match=r"shard-00002\.ann"):
        describe(f"{web.url}/corpus")


def test_a_location_is_located_unless_it_is_a_url():
    assert find_shards("memory://x/y", lambda _: pytest.fail("located")) == "memory://x/y"
    assert find_shards("stage:a/b", lambda location: Path("/run") / location) == Path(
        "/run/stage:a/b"
    )


def test_what_a_dead_process_left_is_removed(web, tmp_path):
    (one, a), (two, b), *_ = records(web)
    store = ShardCache(tmp_path / "cache", max(a.bytes, b.bytes), lambda: False)
    fetching = tmp_path / "cache" / "fetching"
    fetching.mkdir(parents=True)
    stem = f"{b.sha256}-{b.bytes}"
    for name in (f"{stem}.lock", f"{stem}.granted", f".{b.sha256}.7.abcd.tmp", b.sha256):
        (fetching / name).write_bytes(b"x")
    closed(store, one, a)  # would not fit beside what is being fetched, were its process alive
    assert {path.suffix for path in fetching.iterdir()} <= {".lock"}
    closed(store, two, b)


def test_what_a_dead_process_was_granted_does_not_keep_out_who_fetches_the_same(
    web, tmp_path, monkeypatch
):
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "2")
    url, record = records(web)[0]
    store = ShardCache(tmp_path / "cache", record.bytes * 3 // 2, lambda: False)
    (tmp_path / "cache" / "fetching").mkdir(parents=True)
    (tmp_path / "cache" / "fetching" / f"{record.sha256}-{record.bytes}.granted").touch()
    (tmp_path / "cache" / "used").write_text(str(record.bytes))
    closed(store, url, record)


def test_room_that_another_is_fetching_into_is_waited_for(web, tmp_path, monkeypatch):
    (one, a), (two, b), *_ = records(web)
    store = ShardCache(tmp_path / "cache", a.bytes, lambda: False)
    web.faults["/corpus/" + Path(one).name].extend([503] * 20)
    monkeypatch.setattr(Patience, "wait", lambda self, attempt: 0.02)
    first = threading.Thread(target=closed, args=(store, one, a))
    first.start()
    while not list((tmp_path / "cache").glob("fetching/*.granted")):
        time.sleep(0.001)
    closed(store, two, b)  # evicts the first, once that is whole and closed
    first.join()
    assert {path.name for path in (tmp_path / "cache" / "objects").iterdir()} == {b.sha256}


READER = """
import json, sys, time
import numpy as np
from data_pipeline.shards import CacheConfig, ShardedDataset
url, folder, limit, seed, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
data = ShardedDataset.open(url, cache=CacheConfig(folder=folder, bytes=limit))
rng = np.random.default_rng(seed)
total = 0
for _ in range(rounds):
    for i in rng.permutation(len(data)):
        total += int(data.tokens(i).astype(np.int64).sum())
print(json.dumps(total), flush=True)
if rounds == 1:
    kept = data.shard_tokens(0)
    print("holding", flush=True)
    time.sleep(60)
"""


def reader(web, cache, seed, rounds, limit=1 << 30):
    words = [f"{web.url}/corpus", str(cache.folder), str(limit), str(seed), str(rounds)]
    return subprocess.Popen(
        [sys.executable, "-c", READER, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_two_jobs_share_a_cache(web, cache):
    jobs = [reader(web, cache, seed, rounds=2) for seed in range(2)]
    total = 2 * sum(int(document.sum()) for document in sequences())
    for job in jobs:
        answer, _ = job.communicate(timeout=60)
        assert (job.returncode, json.loads(answer)) == (0, total)
    assert set(payloads(web).values()) == {1}


def test_two_jobs_in_little_room_evict_each_other_and_read_the_same(web, cache):
    largest = max(record.bytes for _, record in records(web))
    indices = max(path.stat().st_size for path in (web.folder / "corpus").glob("*.idx"))
    limit = 3 * max(largest, indices)
    jobs = [reader(web, cache, seed, rounds=2, limit=limit) for seed in range(2)]
    total = 2 * sum(int(document.sum()) for document in sequences())
    for job in jobs:
        answer, _ = job.communicate(timeout=60)
        assert (job.returncode, json.loads(answer)) == (0, total)
    assert sum(objects(cache).values()) <= limit


def test_the_pins_of_a_killed_process_are_gone(web, cache):
    job = reader(web, cache, 0, rounds=1)
    try:
        assert job.stdout is not None
        assert json.loads(job.stdout.readline()) > 0
        assert job.stdout.readline() == "holding\n"
        record = read_manifest(web.folder / "corpus").shards[0].files[".bin"]
        with (cache.folder / "objects" / record.sha256).open("rb") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            job.send_signal(signal.SIGKILL)
            job.wait()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        job.kill()
        job.communicate()


def test_records_are_checked_as_they_come(tmp_path):
    store = ShardCache(tmp_path / "cache", 1 << 20, lambda: False)
    import fsspec

    fsspec.filesystem("memory").pipe("/remote-test/x.bin", b"other")
    with pytest.raises(DataError, match=r"memory://remote-test/x\.bin: given up after 5 attempts"):
        store.open("memory://remote-test/x.bin", FileRecord(bytes=5, sha256="0" * 64), rehash=False)
    assert not list((tmp_path / "cache" / "objects").iterdir())
