"""Every fault of a shard folder is named, by the file it is in, before a token is read."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import DataError, ResourceError
from data_pipeline.shards import CacheConfig, ShardedDataset
from data_pipeline.shards.manifest import Manifest, canonical_digest
from tests.data_pipeline.shards.test_shards import flip, write
from tests.data_pipeline.web import serving

FILES = [f"shard-0000{k}{suffix}" for k in range(3) for suffix in (".bin", ".idx", ".ann")]
quickly = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Three shards whose files have the same sizes, with other sequences in each."""
    folder = tmp_path_factory.mktemp("alike")
    rng = np.random.default_rng(5)
    lengths = [10, 20, 30, 40, 20, 10, 40, 30, 30, 30, 20, 20]
    write(folder, [rng.integers(0, 1000, n) for n in lengths], shard_tokens=100)
    return folder


@pytest.fixture
def copy(alike, tmp_path):
    return Path(shutil.copytree(alike, tmp_path / "copy"))


def swap(folder, one, other):
    a, b = folder / one, folder / other
    a.rename(folder / "held")
    b.rename(a)
    (folder / "held").rename(b)


def opened(folder):
    return ShardedDataset.open(folder, verify="digests")


@quickly
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit(copy, file, place, bit):
    content = bytearray((copy / file).read_bytes())
    at = int(place * len(content))
    content[at] ^= 1 << bit
    kept = (copy / file).read_bytes()
    (copy / file).write_bytes(content)
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        opened(copy)
    (copy / file).write_bytes(kept)
    opened(copy)


@quickly
@given(file=st.sampled_from([*FILES, "manifest.json"]), place=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(copy, file, place):
    kept = (copy / file).read_bytes()
    (copy / file).write_bytes(kept[: min(int(place * len(kept)), len(kept) - 1)])
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        ShardedDataset.open(copy)
    (copy / file).write_bytes(kept)


@quickly
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True))
def test_half_downloaded_with_room_reserved(copy, file, place):
    """As tools leave it that set the size first: what did not arrive is zeros."""
    kept = (copy / file).read_bytes()
    arrived = kept[: int(place * len(kept))]
    filled = arrived + bytes(len(kept) - len(arrived))
    (copy / file).write_bytes(filled)
    if filled != kept:
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            opened(copy)
    (copy / file).write_bytes(kept)


@pytest.mark.parametrize("suffix", [".bin", ".ann", ".idx"])
def test_files_of_the_same_size_swapped_between_shards(copy, suffix):
    one, other = f"shard-00000{suffix}", f"shard-00001{suffix}"
    assert (copy / one).stat().st_size == (copy / other).stat().st_size
    swap(copy, one, other)
    with pytest.raises(DataError, match=rf"shard-00000\{suffix}"):
        opened(copy)


def test_a_swapped_index_is_found_without_hashing_the_rest(copy):
    swap(copy, "shard-00000.idx", "shard-00001.idx")
    with pytest.raises(DataError, match=r"shard-00000\.idx: its bytes are not those"):
        ShardedDataset.open(copy, verify="sizes")


def test_whole_shards_swapped(copy):
    for suffix in (".bin", ".ann", ".idx"):
        swap(copy, f"shard-00001{suffix}", f"shard-00002{suffix}")
    with pytest.raises(DataError, match=r"shard-00001"):
        opened(copy)


def edited(values, path, value):
    for step in path[:-1]:
        values = values[step]
    values[path[-1]] = value


EDITS = [
    (("shards", 0, "tokens"), 99),
    (("shards", 0, "sequences"), 5),
    (("shards", 1, "documents"), 3),
    (("shards", 0, "files", ".bin", "bytes"), 198),
    (("shards", 0, "files", ".idx", "sha256"), "0" * 64),
    (("tokenizer", "vocabulary_size"), 999),
    (("tokenizer", "sha256"), "b" * 64),
    (("dtype",), "int32"),
    (("level",), "sentence"),
    (("annotations",), {}),
    (("provenance",), {}),
]


@pytest.mark.parametrize(("path", "value"), EDITS, ids=lambda each: str(each)[:40])
def test_an_edited_manifest(copy, path, value):
    values = json.loads((copy / "manifest.json").read_text())
    edited(values, path, value)
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json: "):
        ShardedDataset.open(copy)


@pytest.mark.parametrize(("path", "value"), EDITS[:5], ids=lambda each: str(each)[:40])
def test_a_manifest_edited_and_signed_again_is_told_apart_by_the_files(copy, path, value):
    values = json.loads((copy / "manifest.json").read_text())
    edited(values, path, value)
    values["digest"] = ""
    signed = Manifest.model_validate(values)
    values["digest"] = canonical_digest(signed)
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"shard-0000{path[1]}"):
        opened(copy)


@pytest.mark.parametrize(
    "name",
    ["../shard-00000", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\nb", "a?b", "%2e"],
)
def test_names_that_lead_elsewhere(copy, name):
    values = json.loads((copy / "manifest.json").read_text())
    values["shards"][0]["name"] = name
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json: shards\.0\.name"):
        ShardedDataset.open(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda shards: shards[0]["files"].pop(".ann"), r"shard-00000 has \.bin, \.idx; expected"),
     (lambda shards: shards[1].update(name="shard-00000"), "stands in it twice"),
     (lambda shards: shards.clear(), "lists no shard|was changed")],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself(copy, change, told):
    values = json.loads((copy / "manifest.json").read_text())
    change(values["shards"])
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"manifest\.json: .*({told})"):
        ShardedDataset.open(copy)


def test_links_are_followed_to_the_same_bytes_alone(copy, tmp_path):
    path = copy / "shard-00000.bin"
    elsewhere = tmp_path / "elsewhere.bin"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    opened(copy)  # adopted files are links
    flip(elsewhere)
    with pytest.raises(DataError, match=r"shard-00000\.bin: its bytes"):
        opened(copy)
    for target in ("/dev/zero", "/etc", tmp_path / "nothing", copy / "shard-00000.bin"):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(DataError, match=r"shard-00000\.bin: missing"):
            ShardedDataset.open(copy)


def test_cut_short_after_it_was_opened(copy):
    data = ShardedDataset.open(copy, mode="pread")
    assert len(data.tokens(4)) == 20
    os.truncate(copy / "shard-00001.bin", 60)
    assert len(data.tokens(4)) == 20
    with pytest.raises(DataError, match=r"shard-00001\.bin: it ends at byte"):
        data.tokens(6)


@pytest.mark.parametrize("verify", ["sizes", "digests"])
@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_made_anew_after_it_was_checked(copy, verify, mode):
    data = ShardedDataset.open(copy, verify=verify, mode=mode)
    for name in ("shard-00001.bin", "shard-00002.bin"):
        content = (copy / name).read_bytes()
        (copy / "made").write_bytes(content[::-1] if "1" in name else content)
        (copy / "made").rename(copy / name)
    for _ in range(2):
        with pytest.raises(DataError, match=r"shard-00001\.bin: its bytes are not those"):
            data.tokens(4)
    assert len(data.tokens(8)) == 30  # the same bytes, in another file
    os.truncate(copy / "shard-00000.bin", 60)
    with pytest.raises(DataError, match=r"shard-00000\.bin: 60 bytes, but 200 were written"):
        data.tokens(0)


def test_removed_after_it_was_opened(copy):
    data = ShardedDataset.open(copy)
    (copy / "shard-00001.bin").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.bin: missing"):
        data.tokens(5)


def test_a_file_system_that_refuses_maps(copy, monkeypatch):
    def refuse(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(DataError, match=r"shard-00000\.bin: cannot be mapped .*set mode: pread"):
        ShardedDataset.open(copy).tokens(0)
    assert len(ShardedDataset.open(copy, mode="pread").tokens(0)) == 10


def fetched(url, cache):
    ShardedDataset.open(url, cache=cache).prefetch(range(3))


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_at_a_url(copy, tmp_path, monkeypatch, file):
    monkeypatch.setattr("data_pipeline.persistence.Patience.wait", lambda self, attempt: 0.0)
    monkeypatch.setattr("data_pipeline.storage.WRONG_BYTES", 2)
    flip(copy / file, at=(copy / file).stat().st_size // 3)
    cache = CacheConfig(folder=tmp_path / "cache")
    with serving(copy) as web:
        with pytest.raises(DataError, match=rf"{web.url}/{file}: given up after 2 attempts"):
            fetched(web.url, cache)
        assert not list(cache.folder.glob("**/.*.tmp"))
        flip(copy / file, at=(copy / file).stat().st_size // 3)
        fetched(web.url, cache)


@pytest.mark.parametrize("room", [0, 100, 2000, 9000])
def test_a_disk_without_room_leaves_no_file_under_a_final_name(tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tokens = np.arange(5000) % 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"shard-00000|manifest"):
            write(tmp_path, [tokens])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write(tmp_path, [tokens])
    opened(tmp_path)


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"no manifest\.json|cannot be read"):
        ShardedDataset.open(tmp_path / "file")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        ShardedDataset.open(tmp_path / "nothing")
