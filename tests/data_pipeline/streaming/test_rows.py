"""Rows against a piece by piece reckoning: any shards, packing, windows, ways to read."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, RecipeError
from data_pipeline.example import Example, ExampleKey
from data_pipeline.packing import (
    BestFitPacking,
    ConcatenatePacking,
    RowShape,
    SentencePairsPacking,
    SinglePacking,
)
from data_pipeline.rows import Rows
from data_pipeline.shards import ShardedDataset, ShardWriter, TokenizerRecord
from data_pipeline.shards.manifest import FILE, read_manifest
from data_pipeline.streaming import Picks, RowReader, TokenStream, blocks
from data_pipeline.streaming.config import DataConfig
from data_pipeline.streaming.gather import ShardSize, lay_out
from data_pipeline.streaming.packed import PackedSource

RECORD = TokenizerRecord(
    name="tiny",
    sha256="a" * 64,
    vocabulary_size=60_000,
    special={"pad": 9, "mask": 3},
    prefix=[],
    suffix=[],
)
PACKINGS = [
    BestFitPacking(),
    BestFitPacking(longest=11),
    ConcatenatePacking(),
    SinglePacking(),
    SentencePairsPacking(),
    SentencePairsPacking(negatives="order"),
]


def write(folder, lengths, seed, vocabulary, prefix, suffix, shard_tokens=120):
    """Shards of random tokens: one in three begins a sentence, one in two a word."""
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths, np.int32)
    total = int(lengths.sum())
    record = RECORD.model_copy(
        update={"vocabulary_size": vocabulary, "prefix": prefix, "suffix": suffix}
    )
    with ShardWriter(folder, record, shard_tokens) as writer:
        bits = rng.integers(0, 2, total) + 2 * (rng.random(total) < 0.3)
        bits[0] |= 2
        writer.write(rng.integers(10, vocabulary, total), lengths, bits.astype(np.uint8))
        writer.finish({"seed": seed})
    return folder


@st.composite
def readers(draw):
    """What a reader is made of."""
    sizes = st.lists(st.integers(1, 45), min_size=4, max_size=30)
    packing = draw(st.sampled_from(PACKINGS))
    least = 1 if isinstance(packing, SentencePairsPacking) else 0
    around = st.integers(least, 3)
    return {
        "sources": draw(st.lists(sizes, min_size=1, max_size=3)),
        "vocabularies": draw(st.lists(st.sampled_from([60_000, 100_000]), min_size=3, max_size=3)),
        "prefix": list(range(4, 4 + draw(around))),
        "suffix": list(range(7, 7 + draw(around))),
        "packing": packing,
        "length": draw(st.integers(14, 40)),
        "window": draw(st.sampled_from([40, 64, 1 << 28])),
        "mode": draw(st.sampled_from(["mmap", "pread"])),
        "seed": draw(st.integers(0, 99)),
    }


def reader_of(folder, given):
    sources = []
    # A pair's second part may come from any other document of its shard.
    shard_tokens = 10_000 if isinstance(given["packing"], SentencePairsPacking) else 120
    for number, lengths in enumerate(given["sources"]):
        place = write(
            folder / str(number),
            lengths,
            number,
            given["vocabularies"][number],
            given["prefix"],
            given["suffix"],
            shard_tokens,
        )
        data = ShardedDataset.open(place, mode=given["mode"])
        sources.append(PackedSource.open(data, given["packing"], given["length"], None))
    return RowReader.of(sources, given["length"], given["seed"], given["window"])


def reckoned(reader, source, sample, epoch):
    """One row, piece by piece."""
    packed = reader.sources[source]
    row = packed.describe(sample, epoch, reader.index.seed)
    pairs = row.label is not None
    columns = {name: [] for name in ("tokens", "segments", "positions", "special", "bits", "parts")}
    position = 0
    for number, piece in enumerate(row.pieces):
        opened = not pairs or number == 0
        position = 0 if opened else position
        part = slice(piece.start, piece.start + piece.length)
        text = packed.data.tokens(piece.sequence)[part].tolist()
        bits = packed.data.annotations(piece.sequence)[part].tolist()
        before = list(reader.prefix) if opened else []
        tokens = [*before, *text, *reader.suffix]
        columns["tokens"] += tokens
        columns["bits"] += [0] * len(before) + bits + [0] * len(reader.suffix)
        columns["special"] += [True] * len(before) + [False] * len(text)
        columns["special"] += [True] * len(reader.suffix)
        columns["segments"] += [1 if pairs else number + 1] * len(tokens)
        columns["parts"] += [number if pairs else 0] * len(tokens)
        columns["positions"] += range(position, position + len(tokens))
        position += len(tokens)
    padding = reader.length - len(columns["tokens"])
    fill = {"tokens": 9, "special": True}
    dtypes = {"special": np.bool_, "bits": np.uint8, "parts": np.uint8}
    made = {
        name: np.array(column + [fill.get(name, 0)] * padding, dtypes.get(name, np.int32))
        for name, column in columns.items()
    }
    key = ExampleKey(source, packed.digest63, sample, epoch)
    label = -1 if row.label is None else row.label
    return Example(
        made["tokens"],
        made["segments"],
        made["positions"],
        made["special"],
        made["bits"],
        key,
        label,
        made["parts"],
    )


def same(one, other):
    """Equal in every field, dtypes too."""
    for item in fields(Example):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, item.name
            assert left.tolist() == right.tolist(), item.name
        else:
            assert left == right, item.name


@given(given=readers(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_are_what_their_pieces_say(tmp_path_factory, given, data):
    reader = reader_of(tmp_path_factory.mktemp("rows"), given)
    every = [(n, row) for n, source in enumerate(reader.sources) for row in range(len(source))]
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=12))
    epochs = np.array([number % 3 for number in range(len(chosen))])
    source, sample = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
    rows = reader.read(Picks(source, epochs, sample))
    expected = [reckoned(reader, *key) for key in zip(source, sample, epochs, strict=True)]
    assert len(rows) == len(expected)
    for row, example in zip(rows, expected, strict=True):
        same(row, example)
    cut = data.draw(st.integers(0, len(rows)))
    for part, examples in ((rows[:cut], expected[:cut]), (rows[cut:], expected[cut:])):
        assert len(part) == len(examples)
        for row, example in zip(part, examples, strict=True):
            same(row, example)
    filled = [int(np.count_nonzero(example.segments)) for example in expected]
    assert rows.layout.filled().tolist() == filled


def test_both_widths_of_tokens_mix(tmp_path):
    given = {
        "sources": [[20, 30, 8], [25, 12]],
        "vocabularies": [60_000, 100_000],
        "prefix": [4],
        "suffix": [7],
        "packing": BestFitPacking(),
        "length": 32,
        "window": 64,
        "mode": "mmap",
        "seed": 0,
    }
    reader = reader_of(tmp_path, given)
    picks = Picks(np.array([1, 0, 1]), np.zeros(3, np.int64), np.array([0, 1, 1]))
    rows = reader.read(picks)
    assert rows.tokens.dtype == np.int32
    for row, (source, sample) in zip(rows, [(1, 0), (0, 1), (1, 1)], strict=True):
        same(row, reckoned(reader, source, sample, 0))


def stream_of(folder: Path, **changes):
    sources = {
        name: {"shards": str(write(folder / name, [17, 8, 30, 5] * 12, seed, 60_000, [4], [7]))}
        for seed, name in enumerate("ab")
    }
    return TokenStream.open(
        DataConfig.model_validate({"length": 24, "sources": sources} | changes), Path, 5
    )


def test_rows_read_in_a_row_are_those_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "TOGETHER", 16)
    stream = stream_of(tmp_path)
    for start, stop in pairwise([0, 1, 15, 16, 17, 50, 300]):
        rows = stream.examples(start, stop)
        for row, other in zip(rows, stream.examples_at(np.arange(start, stop)), strict=True):
            same(row, other)
    assert len(stream.examples(5, 5)) == 0


@pytest.mark.parametrize("size", [1, 7, 30, 90])
def test_whoever_reads_on_gets_the_same_rows(tmp_path, monkeypatch, size):
    monkeypatch.setattr(blocks, "TOGETHER", 64)
    stream = stream_of(tmp_path)
    stream.ahead.together = 32
    sizes = []
    monkeypatch.setattr(
        stream.ahead, "fill", lambda found: sizes.append(len(found)) or stream.reader.fill(found)
    )
    for start in [*range(0, 4 * size, size), 2 * size, 0, 7, *range(7, 7 + 3 * size, size)]:
        rows = stream.examples(start, start + size)
        again = stream.examples_at(np.arange(start, start + size))
        assert len(rows) == size
        for row, other in zip(rows, again, strict=True):
            same(row, other)
    assert sizes[0] == size  # the first batch waits for no other rows
    assert max(sizes) == {1: 31, 7: 21, 30: 30, 90: 90}[size]


def test_the_last_rows_of_a_mixture_that_ends_can_be_read(tmp_path):
    folder = tmp_path / "one"
    source = {"shards": str(write(folder, [17, 8, 30] * 9, 0, 60_000, [4], [7])), "most_epochs": 2}
    config = DataConfig.model_validate({"length": 24, "sources": {"one": source}})
    stream = TokenStream.open(config, Path, 5)
    end = stream.order.rows
    assert len(stream.examples(end - 5, end - 3)) == 2
    assert len(stream.examples(end - 3, end)) == 3
    with pytest.raises(RecipeError, match="ends at row"):
        stream.examples(end - 3, end + 1)


def test_examples_make_the_rows_that_they_came_from(tmp_path):
    rows = stream_of(tmp_path).examples(3, 20)
    again = Rows.of(list(rows))
    for row, other in zip(rows, again, strict=True):
        same(row, other)
    assert Rows.of(rows) is rows
    assert again.layout.filled().tolist() == rows.layout.filled().tolist()


def test_a_part_takes_over_what_the_whole_has_made(tmp_path):
    rows = stream_of(tmp_path).examples(0, 12)
    apart = rows[4:9]
    fresh = {n: getattr(apart, n) for n in ("segments", "positions", "special", "annotations")}
    whole = {name: getattr(rows, name) for name in fresh}
    for name, values in fresh.items():
        assert np.shares_memory(getattr(rows[4:9], name), whole[name])
        assert np.array_equal(getattr(rows[4:9], name), values)


def test_rows_may_count_as_other_sources_with_the_same_masks(tmp_path):
    rows = stream_of(tmp_path).examples(0, 4)
    other = rows.with_sources(np.arange(4))
    assert [row.key.source for row in other] == [0, 1, 2, 3]
    assert [row.key.digest for row in other] == [row.key.digest for row in rows]


def test_slices_have_whole_steps(tmp_path):
    with pytest.raises(ValueError, match="step 2"):
        stream_of(tmp_path).examples(0, 4)[::2]


def without_annotations(folder: Path) -> Path:
    manifest = read_manifest(folder)
    shards = [
        shard.model_copy(update={"files": {s: f for s, f in shard.files.items() if s != ".ann"}})
        for shard in manifest.shards
    ]
    changed = manifest.model_copy(update={"shards": shards, "annotations": {}}).signed()
    (folder / FILE).write_text(changed.model_dump_json())
    for path in folder.glob("*.ann"):
        path.unlink()
    return folder


def test_shards_without_annotations_are_read_until_somebody_asks_for_them(tmp_path):
    stream = stream_of(tmp_path)
    tokens = stream.examples(0, 8).tokens
    without_annotations(tmp_path / "b")
    found = {name: {"shards": str(tmp_path / name)} for name in "ab"}
    config = DataConfig.model_validate({"length": 24, "sources": found})
    bare = TokenStream.open(config, Path, 5)
    rows = bare.examples(0, 8)
    assert rows.tokens.shape == tokens.shape
    with pytest.raises(DataError, match=r"/b: these shards have no annotations"):
        rows.annotations  # noqa: B018
    with pytest.raises(DataError, match=r"/b: the masking policy needs to know where words begin"):
        bare.reader.require_word_starts("the masking policy")
    stream.reader.require_word_starts("the masking policy")


SHARD = ShardSize("shard-0", 100, 2)


@pytest.mark.parametrize(
    ("offsets", "starts", "lengths"),
    [
        ([0, 1], [95], [6]),
        ([0, 1], [-1], [5]),
        ([0, 1], [0], [0]),
        ([0, 1], [0], [29]),
        ([0, 2], [0, 10], [14, 13]),
        ([0, 1], [0, 10], [5, 5]),
        ([1, 2], [0, 10], [5, 5]),
        ([0, 0, 1], [0], [5]),
        ([0, 2, 1, 3], [0, 10, 20], [5, 5, 5]),
    ],
)
def test_a_plan_that_would_lead_out_of_the_shard_or_the_row_is_refused(offsets, starts, lengths):
    arrays = (np.array(each, np.int64) for each in (offsets, starts, lengths))
    with pytest.raises(DataError, match="shard-0: its packing plan does not fit it"):
        lay_out(*arrays, None, RowShape(30, 2, 1), SHARD)


def test_a_row_longer_than_a_window_is_refused():
    one = np.array([0], np.int64), np.array([5], np.int64)
    with pytest.raises(RecipeError, match=r"data\.length 30: expected 20 or fewer"):
        lay_out(np.array([0, 1]), *one, None, RowShape(30, 2, 1), ShardSize("s", 100, 2, 0, 20))


def test_a_row_that_there_is_not_is_refused(tmp_path):
    stream = stream_of(tmp_path)
    nought = np.zeros(1, np.int64)
    for sample in (-1, sum(stream.rows)):
        with pytest.raises(IndexError):
            stream.reader.read(Picks(nought, nought, np.array([sample])))
