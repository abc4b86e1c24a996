"""A window mixes so many shards and no more; every epoch is a bijection; the slow way agrees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data_pipeline.randomness import keyed
from data_pipeline.streaming.order import Order
from data_pipeline.streaming.permutation import permute
from data_pipeline.streaming.schedule import Schedule
from data_pipeline.streaming.shuffle import FullShuffle, ShuffleConfig, SourceRows, WindowShuffle

SHARDS = st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(any)
WIDTHS = st.integers(1, 14)
SEEDS = st.integers(0, 2**64)


def source_of(counts, digest="d"):
    return SourceRows(digest, np.cumsum([0, *counts]))


def read(shuffle, source, seed, epoch):
    """The samples of a whole epoch, in order."""
    place = np.arange(source.rows)
    epochs = np.full_like(place, epoch)
    return shuffle.samples(seed, [source], np.zeros_like(place), epochs, place)


def shard_of(source, samples):
    return np.searchsorted(source.row_starts, samples, "right") - 1


def windowed_by_hand(source, seed, epoch, width):
    """Shard by shard, as one would explain it."""
    key = keyed(seed, "shards", source.digest, epoch)
    order = [int(permute([at], source.shards, key)[0]) for at in range(source.shards)]
    found = []
    for window, first in enumerate(range(0, len(order), width)):
        rows = [
            row
            for shard in order[first : first + width]
            for row in range(source.row_starts[shard], source.row_starts[shard + 1])
        ]
        mixed = keyed(seed, "window", source.digest, epoch, window)
        found += [rows[int(permute([at], len(rows), mixed)[0])] for at in range(len(rows))]
    return found


@given(counts=SHARDS, width=WIDTHS, seed=SEEDS, epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_it_is_what_the_slow_way_gives(counts, width, seed, epoch):
    source = source_of(counts)
    found = read(WindowShuffle(shards=width), source, seed, epoch)
    assert found.tolist() == windowed_by_hand(source, seed, epoch, width)


@given(counts=SHARDS, width=WIDTHS, seed=SEEDS, epoch=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_row_once_and_never_more_shards_than_a_window(
    counts, width, seed, epoch
):
    source = source_of(counts)
    shuffle = WindowShuffle(shards=width)
    samples = read(shuffle, source, seed, epoch)
    assert np.sort(samples).tolist() == list(range(source.rows))
    shards = shard_of(source, samples)
    for shard in set(shards.tolist()):
        span = np.flatnonzero(shards == shard)
        assert len(set(shards[span[0] : span[-1] + 1].tolist())) <= width


@given(counts=SHARDS, width=WIDTHS, seed=SEEDS, epoch=st.integers(0, 3), share=st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_shards_that_come_next_are_told(counts, width, seed, epoch, share):
    source = source_of(counts)
    shuffle = WindowShuffle(shards=width)
    place = int(share * source.rows)
    told = shuffle.shards_from(seed, source, epoch, place)
    assert len(told) == len(set(told)) <= 2 * width
    needed = shard_of(source, read(shuffle, source, seed, epoch))[place:]
    now = int(needed[0])
    assert now in told[:width]
    # Whatever comes is told, until a shard comes that is not: by then two windows have begun.
    following = list(dict.fromkeys(needed.tolist()))
    unforeseen = [shard for shard in following if shard not in told]
    assert not unforeseen or following.index(unforeseen[0]) >= 1
    if source.shards <= width:
        assert set(following) <= set(told)


@given(
    counts=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    width=WIDTHS,
    seed=SEEDS,
    epoch=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_before_an_epoch_ends_the_first_shards_of_the_next_are_told(counts, width, seed, epoch):
    source = source_of(counts)
    shuffle = WindowShuffle(shards=width)
    told = shuffle.shards_from(seed, source, epoch, source.rows - 1)
    first = read(shuffle, source, seed, epoch + 1)[:1]
    assert int(shard_of(source, first)[0]) in told


def test_epochs_seeds_and_data_have_orders_of_their_own():
    shuffle = WindowShuffle(shards=2)
    orders = {
        tuple(read(shuffle, source_of([9, 5, 7, 3], digest), seed, epoch).tolist())
        for digest, seed, epoch in [("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1)]
    }
    assert len(orders) == 4


def test_the_order_is_frozen():
    found = read(WindowShuffle(shards=2), source_of([3, 2, 0, 4]), 7, 1)
    assert found.tolist() == [4, 3, 5, 8, 6, 1, 0, 7, 2]


def test_one_window_of_all_shards_mixes_as_evenly_as_a_full_shuffle():
    source = source_of([50] * 8)
    found = read(WindowShuffle(shards=8), source, 3, 0)
    assert sorted(found[:100] // 50) != sorted([0] * 50 + [1] * 50)
    assert len(set((found[:60] // 50).tolist())) == 8


@given(
    counts=st.lists(SHARDS, min_size=1, max_size=3),
    width=WIDTHS,
    seed=SEEDS,
    at=st.lists(st.integers(0, 1500), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_any_index_of_a_mixture_gives_what_it_gives_among_others(counts, width, seed, at):
    sources = tuple(source_of(each, f"{n:x}") for n, each in enumerate(counts))
    weights = {f"s{n}": 1.0 + n for n in range(len(counts))}
    order = Order(seed, sources, Schedule.of(weights, 32).mixture(), WindowShuffle(shards=width))
    whole, some = order(np.arange(1501)), order(at)
    assert np.array_equal(whole.sample[at], some.sample)
    for number, source in enumerate(sources):
        own = whole.source == number
        first = (whole.epoch[own] == 0) if source.rows <= own.sum() else np.zeros(0, bool)
        if first.size:
            assert sorted(whole.sample[own][first].tolist()) == list(range(source.rows))


def test_the_shards_of_every_source_are_told_from_a_global_index():
    sources = (source_of([10] * 6, "a"), source_of([4] * 9, "b"))
    shuffle = WindowShuffle(shards=2)
    order = Order(5, sources, Schedule.of({"a": 3, "b": 1}, 32).mixture(), shuffle)
    for index in (0, 7, 31, 32, 63, 500):
        told = order.shards_from(index)
        picks = order(np.arange(index, index + 24))
        for number, source in enumerate(sources):
            first = np.flatnonzero(picks.source == number)[0]
            shard = int(shard_of(source, picks.sample[first]))
            assert shard in told[number][:2]
            assert len(told[number]) <= 4


def test_a_full_shuffle_needs_all_shards():
    assert FullShuffle().shards_from(1, source_of([3, 0, 2]), 0, 4) == [0, 1, 2]


def test_it_stays_quick_with_very_many_shards():
    """What would be seconds if it were by shard: 100,000 of them, and 10,000 indices."""
    source = source_of([1000] * 100_000)
    order = Order(1, (source,), Schedule.of({"a": 1}).mixture(), WindowShuffle(shards=16))
    picks = order(np.arange(10**7, 10**7 + 10_000))
    assert len(set((picks.sample // 1000).tolist())) <= 32


@pytest.mark.parametrize(
    ("given_", "member"),
    [({"name": "full"}, FullShuffle()), ({"name": "window", "shards": 3}, WindowShuffle(shards=3))],
)
def test_the_family_is_chosen_by_name(given_, member):
    assert TypeAdapter(ShuffleConfig).validate_python(given_) == member


def test_shuffles_have_identities_of_their_own():
    members = [FullShuffle(), WindowShuffle(shards=3), WindowShuffle(shards=4)]
    assert len({member.identity for member in members}) == 3
