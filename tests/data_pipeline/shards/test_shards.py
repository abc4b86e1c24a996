"""Shards: what is written comes back, in Megatron's layout, and any damage is named."""

import contextlib
import gc
import json
import shutil
import struct
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.shards import ShardedDataset, ShardWriter, TokenizerRecord, describe, token_dtype
from data_pipeline.shards.opened import FileKey, OpenFiles

TOKENIZER = TokenizerRecord(
    name="tiny",
    sha256="a" * 64,
    vocabulary_size=1000,
    special={"pad": 0, "cls": 2, "sep": 3, "mask": 4},
    prefix=[2],
    suffix=[3],
)


def sequences(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 1000, rng.integers(1, 30)) for _ in range(count)]


def write(folder, documents, *, chunk=7, shard_tokens=200, tokenizer=TOKENIZER):
    with ShardWriter(folder, tokenizer, shard_tokens) as writer:
        for at in range(0, len(documents), chunk):
            part = documents[at : at + chunk]
            tokens = np.concatenate(part)
            lengths = np.array([len(d) for d in part], np.int32)
            writer.write(tokens, lengths, (tokens % 4).astype(np.uint8))
        return writer.finish({"sources": ["generated"]})


def file_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    chunk=st.integers(1, 9),
    shard_tokens=st.integers(1, 120),
)
def test_what_is_written_comes_back(tmp_path_factory, lengths, chunk, shard_tokens):
    folder = tmp_path_factory.mktemp("shards")
    documents = [np.arange(n) + 10 * i for i, n in enumerate(lengths)]
    write(folder, documents, chunk=chunk, shard_tokens=shard_tokens)
    data = ShardedDataset.open(folder, verify="digests")
    assert len(data) == len(documents)
    np.testing.assert_array_equal(data.lengths, lengths)
    for i, document in enumerate(documents):
        np.testing.assert_array_equal(data.tokens(i), document)
        np.testing.assert_array_equal(data.annotations(i), document % 4)
    assert [shard.first for shard in data.shards] == list(data.shard_starts[:-1])
    assert data.manifest.tokens == sum(lengths)


def test_shards_do_not_depend_on_how_sequences_are_handed_over(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    first = write(one, sequences(), chunk=1)
    second = write(other, sequences(), chunk=40)
    assert len(first.shards) > 1
    assert first == second
    assert file_bytes(one) == file_bytes(other)


def test_layout_is_megatrons(tmp_path):
    write(tmp_path, [np.array([5, 6, 7]), np.array([8, 9])])
    content = (tmp_path / "shard-00000.idx").read_bytes()
    assert content[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", content, 9) == (1, 8, 2, 3)
    assert struct.unpack_from("<2i2q3q", content, 34) == (3, 2, 0, 6, 0, 1, 2)
    assert np.fromfile(tmp_path / "shard-00000.bin", "<u2").tolist() == [5, 6, 7, 8, 9]
    assert (tmp_path / "shard-00000.ann").stat().st_size == 5


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65500, "uint16"), (65501, "int32")])
def test_dtype_follows_the_vocabulary(tmp_path, vocabulary, dtype):
    assert token_dtype(vocabulary) == np.dtype(dtype)
    tokenizer = TOKENIZER.model_copy(update={"vocabulary_size": vocabulary})
    write(tmp_path, [np.array([vocabulary - 1, 3])], tokenizer=tokenizer)
    data = ShardedDataset.open(tmp_path)
    assert data.manifest.dtype == data.tokens(0).dtype.name == dtype
    assert data.tokens(0).tolist() == [vocabulary - 1, 3]


def test_fingerprint_tells_contents_and_tokenizer_apart(tmp_path):
    def fingerprint(name, documents, tokenizer=TOKENIZER):
        return write(tmp_path / name, documents, tokenizer=tokenizer).digest

    one = fingerprint("a", sequences())
    assert one == fingerprint("b", sequences())
    assert one != fingerprint("c", sequences(seed=1))
    assert one != fingerprint("d", sequences(), TOKENIZER.model_copy(update={"sha256": "b" * 64}))


def test_the_content_digest_leaves_out_where_it_came_from(tmp_path):
    made = write(tmp_path, sequences())
    tokenizer = made.tokenizer.model_copy(update={"name": "/another/folder"})
    moved = made.model_copy(update={"provenance": {"path": "/x"}, "tokenizer": tokenizer}).signed()
    assert moved.digest != made.digest
    assert moved.content == made.content == ShardedDataset.open(tmp_path).content
    others = [
        {"tokenizer": made.tokenizer.model_copy(update={"prefix": [4]})},
        {"dtype": "int32"},
        {"shards": made.shards[:1]},
    ]
    assert made.content not in {made.model_copy(update=other).content for other in others}


def test_legend_names_the_bits(tmp_path):
    legend = write(tmp_path, sequences()).annotations
    assert {1 << int(bit): name for bit, name in legend.items()} == {
        WORD_START: "word start",
        SENTENCE_START: "sentence start",
    }


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\x00")


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    write(folder, sequences())
    return folder


@pytest.fixture
def damaged(intact, tmp_path):
    return Path(shutil.copytree(intact, tmp_path / "copy"))


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".ann"])
@pytest.mark.parametrize("damage", [cut, lengthen, Path.unlink])
def test_a_file_of_the_wrong_size_or_missing_is_named(damaged, suffix, damage):
    path = damaged / f"shard-00001{suffix}"
    damage(path)
    with pytest.raises(DataError, match=str(path)):
        ShardedDataset.open(damaged)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".ann"])
def test_a_flipped_bit_is_found_by_digest(damaged, suffix):
    path = damaged / f"shard-00000{suffix}"
    flip(path, at=path.stat().st_size // 2)
    with pytest.raises(DataError, match=str(path)):
        ShardedDataset.open(damaged, verify="digests")


def test_each_process_hashes_its_share_of_the_shards(damaged):
    path = damaged / "shard-00001.ann"
    flip(path, at=path.stat().st_size // 2)
    ShardedDataset.open(damaged, "digests", slice(0, None, 2))
    with pytest.raises(DataError, match=str(path)):
        ShardedDataset.open(damaged, "digests", slice(1, None, 2))


def test_every_flipped_byte_of_an_index_is_found_by_sizes_alone(tmp_path):
    write(tmp_path, sequences(5))
    path = tmp_path / "shard-00000.idx"
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(DataError, match=str(path)):
            ShardedDataset.open(tmp_path)
        flip(path, at)


def test_an_index_of_another_shard_is_refused(damaged):
    content = (damaged / "shard-00001.idx").read_bytes()
    (damaged / "shard-00000.idx").write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000\.idx"):
        ShardedDataset.open(damaged)


def test_a_changed_manifest_is_refused(damaged):
    path = damaged / "manifest.json"
    values = json.loads(path.read_text())
    values["tokenizer"]["suffix"] = [9]
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json: it was changed"):
        ShardedDataset.open(damaged)


@pytest.mark.parametrize("content", ["", "{", '{"format": "onward-shards"}', "[]"])
def test_a_malformed_manifest_is_named(damaged, content):
    (damaged / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        ShardedDataset.open(damaged)


def test_a_manifest_cannot_point_outside_its_folder(damaged):
    path = damaged / "manifest.json"
    values = json.loads(path.read_text())
    values["shards"][0]["name"] = "../elsewhere/shard"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        ShardedDataset.open(damaged)


def test_a_folder_without_manifest_is_refused(damaged):
    (damaged / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        ShardedDataset.open(damaged)


def test_another_tokenizer_is_refused_with_both_digests(intact):
    data = ShardedDataset.open(intact)
    data.require_tokenizer("a" * 64, "the model's")
    with pytest.raises(DataError, match=r"aaaaaaaa.*the model's.*bbbbbbbb"):
        data.require_tokenizer("b" * 64, "the model's")


def test_nothing_is_readable_until_all_is_written(tmp_path):
    with ShardWriter(tmp_path, TOKENIZER, 4) as writer:
        writer.write(np.arange(6), np.array([5, 1], np.int32), np.zeros(6, np.uint8))
        with pytest.raises(DataError, match=r"no manifest\.json"):
            ShardedDataset.open(tmp_path)
    assert not list(tmp_path.glob(".*"))
    write(tmp_path, [np.arange(3)])
    assert sorted(file_bytes(tmp_path)) == [
        "manifest.json",
        "shard-00000.ann",
        "shard-00000.bin",
        "shard-00000.idx",
    ]


def test_nothing_to_write_is_an_error(tmp_path):
    with (
        ShardWriter(tmp_path, TOKENIZER) as writer,
        pytest.raises(DataError, match="not one document"),
    ):
        writer.finish({})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tokens", "lengths", "match"),
    [([1000], [1], "vocabulary"), ([-1], [1], "vocabulary"), ([1, 2], [1], "lengths"),
     ([1], [1, 0], "no empty")],
)  # fmt: skip
def test_what_cannot_be_right_is_not_written(tmp_path, tokens, lengths, match):
    with ShardWriter(tmp_path, TOKENIZER) as writer, pytest.raises(DataError, match=match):
        writer.write(np.array(tokens), np.array(lengths, np.int32), np.zeros(len(tokens), np.uint8))


def open_below(folder):
    """Files of a folder that this process holds open, mapped ones too."""
    found = []
    for place in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(place.readlink())
    return sum(path.is_relative_to(folder) for path in found)


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_more_shards_than_stay_open(tmp_path, monkeypatch, mode):
    documents = sequences(12)
    write(tmp_path, documents, shard_tokens=1)
    files = OpenFiles(most=3)
    monkeypatch.setattr("data_pipeline.shards.read.OPENED", files)
    data = ShardedDataset.open(tmp_path, mode=mode)
    for i in np.random.default_rng(0).permutation(len(documents)):
        np.testing.assert_array_equal(data.tokens(i), documents[i])
        assert open_below(tmp_path) <= 3
    del data
    gc.collect()
    assert open_below(tmp_path) == 0


def test_tokens_cannot_be_written_to(intact):
    data = ShardedDataset.open(intact)
    with pytest.raises(ValueError, match="read-only"):
        data.tokens(0)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        data.lengths[0] = 1
    with pytest.raises(IndexError):
        data.tokens(len(data))


def test_describe_is_json_and_verifies(damaged):
    told = json.loads(json.dumps(describe(damaged)))
    assert told["sequences"] == told["documents"] == 40
    assert told["tokens"] == sum(len(d) for d in sequences())
    assert told["tokenizer"]["name"] == "tiny"
    flip(damaged / "shard-00000.bin")
    with pytest.raises(DataError, match=r"shard-00000\.bin"):
        describe(damaged)


class _CollectsWhenHashed(int):
    def __hash__(self):
        gc.collect()
        return 0


class _Cycle:
    def __init__(self):
        self.own = self


def test_a_data_set_may_be_collected_while_its_thread_looks_for_a_file():
    files = OpenFiles()

    def look():
        weakref.finalize(_Cycle(), files.close_all_of, 7)
        files.get(FileKey(_CollectsWhenHashed(), 0, ".bin"), object)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"level": "sentence"}, False),
        ({"annotations": {"0": "word start"}}, False),
        ({"tokenizer": TOKENIZER.model_copy(update={"suffix": []})}, False),
        ({"tokenizer": TOKENIZER.model_copy(update={"name": "other"})}, True),
        ({"provenance": {}}, True),
    ],
    ids=str,
)
def test_the_content_is_what_is_read_and_what_it_means(tmp_path, change, same):
    made = write(tmp_path, sequences())
    assert (made.model_copy(update=change).content == made.content) is same
