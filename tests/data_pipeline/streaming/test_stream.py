"""Rows as the shards hold them, whichever way they are asked for; nothing lost in an epoch."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import DataError, RecipeError
from data_pipeline.example import WORD_START
from data_pipeline.packing import BestFitPacking, ConcatenatePacking
from data_pipeline.shards import ShardedDataset
from data_pipeline.streaming import (
    DataConfig,
    FixedRows,
    SourceConfig,
    TokenStream,
    describe_steps,
)

LENGTHS = [3, 40, 17, 1, 12, 90, 5, 5, 31, 8, 64, 2, 2, 2, 33, 11] * 3
FIELDS = ("tokens", "segments", "positions", "special", "annotations")


def config_of(packing=None, length=24, **locations):
    sources = {name: SourceConfig(shards=location) for name, location in locations.items()}
    return DataConfig(length=length, packing=packing or BestFitPacking(), sources=sources)


def open_stream(config, seed=1, **more):
    return TokenStream.open(config, Path, seed, **more)


@pytest.fixture
def two(make_shards):
    """A stream of two sources of unequal size, and their data sets."""
    general = make_shards("general", LENGTHS)
    domain = make_shards("domain", [7, 19, 4, 28] * 3, first=20_000)
    stream = open_stream(config_of(general=general, domain=domain))
    return stream, [ShardedDataset.open(Path(folder)) for folder in (general, domain)]


def expected(stream, source, sample):
    """A row put together piece by piece."""
    data = stream.reader.sources[source].data
    prefix, suffix = stream.tokenizer.prefix, stream.tokenizer.suffix
    row = {name: [] for name in FIELDS}
    for number, piece in enumerate(stream.reader.sources[source].describe(sample).pieces, 1):
        part = slice(piece.start, piece.start + piece.length)
        tokens = [*prefix, *data.tokens(piece.sequence)[part].tolist(), *suffix]
        before, after = [0] * len(prefix), [0] * len(suffix)
        row["tokens"] += tokens
        row["segments"] += [number] * len(tokens)
        row["positions"] += range(len(tokens))
        row["special"] += [True] * len(prefix) + [False] * piece.length + [True] * len(suffix)
        row["annotations"] += [*before, *data.annotations(piece.sequence)[part].tolist(), *after]
    padding = stream.length - len(row["tokens"])
    for name, value in zip(FIELDS, (stream.reader.padding, 0, 0, True, 0), strict=True):
        row[name] += [value] * padding
    return row


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatenatePacking()], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "special",
    [
        {},
        {"prefix": [], "suffix": [2], "special": {"eos": 2}},
        {"prefix": [], "suffix": [], "special": {}},
        {"prefix": [1, 5], "suffix": [2, 6]},
    ],
    ids=["encoder", "causal", "bare", "longer"],
)
def test_rows_are_what_the_shards_hold(make_shards, packing, special):
    locations = {
        "a": make_shards("a", LENGTHS, **special),
        "b": make_shards("b", [9, 70, 3], first=9000, **special),
    }
    stream = open_stream(config_of(packing, **locations))
    examples = stream.examples(0, 2 * sum(stream.rows))
    for example in examples:
        row = expected(stream, example.key.source, example.key.sample)
        for name in FIELDS:
            assert getattr(example, name).tolist() == row[name], name
        assert [getattr(example, name).dtype.name for name in FIELDS] == [
            "int32",
            "int32",
            "int32",
            "bool",
            "uint8",
        ]


def test_the_padding_id_is_the_tokenizers(make_shards):
    padded = {
        name: open_stream(config_of(a=make_shards(name, [5], special=special)))
        for name, special in {"pad": {"pad": 8, "eos": 2}, "eos": {"eos": 2}, "none": {}}.items()
    }
    assert {name: s.examples(0, 1)[0].tokens[-1].item() for name, s in padded.items()} == {
        "pad": 8,
        "eos": 2,
        "none": 0,
    }


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatenatePacking()], ids=lambda p: p.name)
def test_every_token_is_read_once_an_epoch(make_shards, packing):
    stream = open_stream(config_of(packing, only=make_shards("only", LENGTHS)))
    rows = stream.rows[0]
    for epoch in (0, 1):
        examples = stream.examples(epoch * rows, (epoch + 1) * rows)
        assert {example.key.epoch for example in examples} == {epoch}
        read = Counter(t for e in examples for t in e.tokens[~e.special].tolist())
        assert read == Counter(range(100, 100 + sum(LENGTHS)))


def same(some, others):
    return len(some) == len(others) and all(
        a.key == b.key and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in FIELDS)
        for a, b in zip(some, others, strict=True)
    )


def test_any_slice_and_any_index_give_the_same_rows(two):
    stream, _ = two
    whole = stream.examples(0, 300)

    @given(start=st.integers(0, 300), count=st.integers(0, 40), at=st.lists(st.integers(0, 299)))
    @settings(max_examples=30, deadline=None)
    def check(start, count, at):
        assert same(stream.examples(start, min(start + count, 300)), whole[start : start + count])
        assert same(stream.examples_at(at), [whole[index] for index in at])

    check()


def test_a_reopened_stream_goes_on_as_if_it_had_not_stopped(two, tmp_path):
    stream, _ = two
    again = TokenStream.open(stream.config, Path, 1, tmp_path / "cache", "digests")
    cached = TokenStream.open(stream.config, Path, 1, tmp_path / "cache")
    index = again.resume(stream.cursor(777))
    assert index == 777
    for other in (again, cached):
        assert same(other.examples(index, index + 50), stream.examples(777, 827))
        assert other.fingerprint == stream.fingerprint


def test_threads_read_what_one_reads(two):
    stream, _ = two
    alone = stream.examples(0, 200)
    found = {}

    def read(number):
        found[number] = [stream.examples(at, at + 20) for at in range(0, 200, 20)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same([row for part in parts for row in part], alone) for parts in found.values())
    assert len(found) == 4


def test_it_says_what_it_reads(two):
    stream, data = two
    assert stream.sources == ["general", "domain"]
    assert stream.rows == [len(source) for source in stream.reader.sources]
    assert stream.vocabulary_size == 60_000
    assert stream.tokenizer_sha256 == "a" * 64
    assert stream.special["mask"] == 3
    key = stream.examples_at([0])[0].key
    assert key.digest == int(data[key.source].content, 16) >> (256 - 63)


def test_the_fingerprint_follows_all_that_decides_the_order(make_shards):
    a, b = make_shards("a", LENGTHS), make_shards("b", [5, 6])
    known = open_stream(config_of(a=a, b=b))
    weighted = {"a": SourceConfig(shards=a, weight=2), "b": SourceConfig(shards=b)}
    others = [
        open_stream(config_of(a=a, b=b), seed=2),
        open_stream(config_of(a=a)),
        open_stream(config_of(b=b, a=a)),
        open_stream(config_of(a=a, b=b, length=25)),
        open_stream(config_of(ConcatenatePacking(), a=a, b=b)),
        open_stream(known.config.model_copy(update={"sources": weighted})),
    ]
    assert len({known.fingerprint, *(other.fingerprint for other in others)}) == 7
    assert open_stream(config_of(x=a, y=b)).fingerprint == known.fingerprint


def test_the_order_follows_the_contents_and_not_where_they_came_from(make_shards):
    a, moved = make_shards("a", LENGTHS), make_shards("moved", LENGTHS, provenance={"path": "/b"})
    other = make_shards("other", LENGTHS, first=101)
    assert ShardedDataset.open(Path(a)).fingerprint != ShardedDataset.open(Path(moved)).fingerprint
    streams = [open_stream(config_of(a=location)) for location in (a, moved, other)]
    one, same_bytes, other_bytes = (stream.examples(0, 60) for stream in streams)
    assert same(one, same_bytes)
    assert [row.key for row in one] == [row.key for row in same_bytes]
    assert [row.key.sample for row in one] != [row.key.sample for row in other_bytes]
    assert streams[1].resume(streams[0].cursor(7)) == 7
    fixed = [FixedRows.open(Path(location), 24, 10) for location in (a, moved)]
    assert same(*(rows.examples(0, 10) for rows in fixed))
    with pytest.raises(RecipeError, match="'a' and 'b' are the same data"):
        open_stream(config_of(a=a, b=moved))


def test_a_piece_cut_in_mid_word_keeps_its_annotations(make_shards):
    stream = open_stream(config_of(a=make_shards("a", [100])))
    for example in stream.examples(0, stream.rows[0]):
        text = ~example.special
        starts = (example.annotations & WORD_START).astype(bool)
        assert np.array_equal(starts[text], example.tokens[text] % 3 != 0)


def test_the_same_data_twice_is_refused(make_shards):
    location = make_shards("a", LENGTHS)
    with pytest.raises(RecipeError, match="'a' and 'b' are the same data"):
        open_stream(config_of(a=location, b=location))


def test_sources_of_two_tokenizers_are_refused(make_shards):
    first = make_shards("a", LENGTHS)
    with pytest.raises(DataError, match="/b: made by tokenizer"):
        open_stream(config_of(a=first, b=make_shards("b", [5], sha256="b" * 64)))
    others = {"prefix": [7], "suffix": [], "special": {"pad": 0, "cls": 1, "sep": 2, "mask": 4}}
    for part, value in others.items():
        with pytest.raises(DataError, match=f"{part} tokens of source 'c'"):
            open_stream(config_of(a=first, c=make_shards(part, [5], **{part: value})))


def test_rows_too_short_for_the_special_tokens_are_refused(make_shards):
    location = make_shards("a", LENGTHS, prefix=[1, 1], suffix=[2, 2])
    with pytest.raises(RecipeError, match="4 special tokens"):
        open_stream(config_of(length=4, a=location))


def test_a_shard_cut_short_is_named(make_shards):
    location = make_shards("a", LENGTHS)
    file = next(iter(sorted(Path(location).glob("*.bin"))))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=file.name):
        open_stream(config_of(a=location))


def test_a_flipped_bit_is_named_when_digests_are_verified(make_shards):
    location = make_shards("a", LENGTHS)
    file = next(iter(sorted(Path(location).glob("*.ann"))))
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=file.name):
        open_stream(config_of(a=location), verify="digests")
    with pytest.raises(DataError, match=file.name):
        FixedRows.open(Path(location), 24, 10)


def test_fixed_rows_are_always_the_same_and_spread_over_the_set(make_shards, tmp_path):
    folder = Path(make_shards("held_out", LENGTHS))
    some = FixedRows.open(folder, 24, 10)
    more = FixedRows.open(folder, 24, 20, cache=tmp_path / "cache")
    assert len(some) == 10
    assert same(some.examples(0, 10), more.examples(0, 10))
    assert {(e.key.source, e.key.epoch) for e in more.examples(0, 20)} == {(0, 0)}
    samples = [example.key.sample for example in more.examples(0, 20)]
    assert len(set(samples)) == 20
    assert max(samples) > len(more.reader.sources[0]) / 2


def test_fixed_rows_are_all_rows_of_a_small_set(make_shards):
    rows = FixedRows.open(Path(make_shards("held_out", LENGTHS)), 24, 10**6)
    total = len(rows.reader.sources[0])
    assert sorted(e.key.sample for e in rows.examples(0, total)) == list(range(total))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_table_of_an_order_says_what_is_read(two, world):
    stream, _ = two
    table = describe_steps(stream, range(5, 8), 12, world)
    assert [row.index for row in table] == list(range(60, 96))
    assert [row.rank for row in table] == [
        r for _ in range(3) for r in range(world) for _ in range(12 // world)
    ]
    for row, example in zip(table, stream.examples(60, 96), strict=True):
        key = example.key
        assert (row.source, row.sample, row.epoch) == (
            stream.sources[key.source],
            key.sample,
            key.epoch,
        )
        assert len(row.documents) == example.segments.max()
        assert sum(piece.length for piece in row.documents) == (~example.special).sum()


def test_a_stream_opens_from_its_cache_without_planning(make_shards, tmp_path, monkeypatch):
    config = config_of(only=make_shards("only", LENGTHS))
    first = open_stream(config, cache=tmp_path / "cache")

    def plan(*_):
        raise AssertionError

    monkeypatch.setattr(BestFitPacking, "plan", plan)
    again = open_stream(config, cache=tmp_path / "cache")
    assert again.rows == first.rows
    assert same(again.examples(0, 50), first.examples(0, 50))


def test_limits_on_passes_bound_what_a_run_may_ask_for(make_shards):
    sources = {
        "a": SourceConfig(shards=make_shards("a", LENGTHS), most_epochs=1.5),
        "b": SourceConfig(shards=make_shards("b", [5, 9] * 20, first=9000), most_epochs=2),
    }
    stream = open_stream(DataConfig(length=24, sources=sources))
    there = int(1.5 * stream.rows[0]) + 2 * stream.rows[1]
    assert stream.order.rows == there
    stream.require_rows(there)
    with pytest.raises(
        RecipeError, match=rf"asks for {there + 1} rows, but there are {there} .*a: 1.5"
    ):
        stream.require_rows(there + 1)
    picks = stream.order(np.arange(there))
    assert np.bincount(picks.source).tolist() == [there - 2 * stream.rows[1], 2 * stream.rows[1]]
    endless = sources | {"b": sources["b"].model_copy(update={"most_epochs": None})}
    assert open_stream(DataConfig(length=24, sources=endless)).order.rows is None


def test_a_change_that_would_come_after_the_end_is_refused(make_shards):
    values = {
        "length": 24,
        "sources": {
            "a": {"shards": make_shards("a", LENGTHS)},
            "b": {"shards": make_shards("b", [5, 9], first=9000)},
        },
        "changes": [{"after": 100, "weights": {"a": 1, "b": 3}}],
    }
    stream = open_stream(DataConfig.model_validate(values))
    stream.require_rows(1025)
    with pytest.raises(RecipeError, match=r"after row 100 would hold from row 1024 .* at row 1024"):
        stream.require_rows(1024)
    skipping = values | {"skip": [{"start": 7, "stop": 17}]}
    stream = open_stream(DataConfig.model_validate(skipping))
    stream.require_rows(1015)
    with pytest.raises(RecipeError, match=r"data\.changes: .* the run ends at row 1024"):
        stream.require_rows(1014)


@pytest.mark.parametrize(
    ("passes", "rows", "most"), [(0.29, 100, 29), (1.15, 100, 115), (2.4, 5, 12)]
)
def test_a_limit_is_of_the_rows_that_one_would_count(passes, rows, most):
    sources = {"a": SourceConfig(shards="a", most_epochs=passes)}
    assert DataConfig(length=24, sources=sources).most_rows({"a": rows}) == {"a": most}


def test_a_limit_below_one_row_is_refused(make_shards):
    source = SourceConfig(shards=make_shards("a", LENGTHS), most_epochs=0.001)
    with pytest.raises(RecipeError, match=r"data\.sources\.a\.most_epochs: 0.001 of \d+ rows"):
        open_stream(DataConfig(length=24, sources={"a": source}))


def test_a_document_cannot_be_longer_than_its_row():
    with pytest.raises(ValidationError, match="longest 25 is more than length 24"):
        config_of(BestFitPacking(longest=25), a="x")


def test_shares_are_told_by_global_index_whatever_is_skipped(make_shards):
    names = {"general": make_shards("general", LENGTHS), "domain": make_shards("domain", [9] * 40)}
    values = config_of(**names).model_dump()
    changes = [{"after": 1024, "weights": {"general": 1, "domain": 3}}]
    plain = open_stream(DataConfig.model_validate(values | {"changes": changes}))
    assert plain.sources == ["general", "domain"]
    assert [plain.shares(at) for at in (0, 1023, 1024)] == [[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]]
    skip = [{"start": 10, "stop": 20}]
    skipping = open_stream(DataConfig.model_validate(values | {"changes": changes, "skip": skip}))
    assert [skipping.shares(at) for at in (1013, 1014)] == [[0.5, 0.5], [0.25, 0.75]]
