"""Limits on passes: what a source may give it gives, the others share the rest, block by block."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import RecipeError
from data_pipeline.streaming.mixture import apportion
from data_pipeline.streaming.order import IndexRange, Order, slice_of_step
from data_pipeline.streaming.schedule import Schedule
from data_pipeline.streaming.shuffle import FullShuffle, SourceRows, WindowShuffle

BLOCK = 32
NAMES = "abcd"
WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**64)
PARTS = ("source", "epoch", "sample")


def block_by_block(turns, most, blocks):
    """Rows of each source in every block, counted out one block after another."""
    left = dict(most)
    for at in range(blocks):
        weights = dict(next(w for first, w in reversed(turns) if first <= at))
        sharing = {n: w for n, w in weights.items() if w and left.get(n, 1)}
        rows, given_ = BLOCK, dict.fromkeys(weights, 0)
        while sharing:
            asked = dict(zip(sharing, apportion(list(sharing.values()), rows), strict=True))
            ending = [n for n in sharing if left.get(n, BLOCK) < asked[n]]
            if not ending:
                given_ |= asked
                break
            for name in ending:
                given_[name] = left[name]
                rows -= left[name]
                del sharing[name]
        for name in left:
            left[name] -= given_[name]
        yield list(given_.values())
        if sum(given_.values()) < BLOCK:
            return


@st.composite
def schedules(draw):
    weights = draw(WEIGHTS)
    names = NAMES[: len(weights)]
    turns = [(0, dict(zip(names, map(float, weights), strict=True)))]
    for _ in range(draw(st.integers(0, 2))):
        others = draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names)))
        if any(others):
            later = turns[-1][0] + draw(st.integers(1, 6))
            turns.append((later, dict(zip(names, map(float, others), strict=True))))
    limited = draw(st.sets(st.sampled_from(names)))
    most = {name: draw(st.integers(1, 300)) for name in sorted(limited)}
    made = Schedule.of(turns[0][1], BLOCK)
    for first, changed in turns[1:]:
        made = made.changed(first * BLOCK, changed)
    return turns, most, made


@given(case=schedules(), seed=SEEDS)
@settings(max_examples=120, deadline=None)
def test_it_is_what_counting_block_by_block_gives(case, seed):
    turns, most, schedule = case
    mixture = schedule.mixture(most)
    expected = list(block_by_block(turns, most, 45))
    total = sum(map(sum, expected))
    if mixture.end is not None and mixture.end <= 45 * BLOCK:
        assert mixture.end == total
    else:
        assert total == 45 * BLOCK
    drawn = mixture.draw(np.arange(total), seed)
    counts = np.zeros(len(turns[0][1]), int)
    for at, block in enumerate(expected):
        own = drawn.source[at * BLOCK : (at + 1) * BLOCK]
        assert np.bincount(own, minlength=len(block)).tolist() == block
        assert mixture.drawn_before(at * BLOCK, seed) == counts.tolist()
        counts += block
    for number in range(len(counts)):
        own = drawn.count[drawn.source == number]
        assert own.tolist() == list(range(len(own)))
    for name, limit in most.items():
        assert (drawn.source == NAMES.index(name)).sum() <= limit


@given(case=schedules(), seed=SEEDS, row=st.integers(0, 600))
@settings(max_examples=40, deadline=None)
def test_what_was_drawn_before_a_row_is_counted_without_drawing_it(case, seed, row):
    _, most, schedule = case
    mixture = schedule.mixture(most)
    row = row if mixture.end is None else min(row, mixture.end)
    drawn = mixture.draw(np.arange(row), seed)
    counts = np.bincount(drawn.source, minlength=len(schedule.turns[0].weights))
    assert mixture.drawn_before(row, seed) == counts.tolist()


@given(case=schedules(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_change_leaves_what_comes_before_it(case, seed):
    _, most, schedule = case
    later = schedule.turns[-1].first_block + 3
    grown = schedule.changed(later * BLOCK, dict.fromkeys(schedule.turns[0].weights, 1.0))
    first, second = schedule.mixture(most), grown.mixture(most)
    rows = np.arange(min(later * BLOCK, first.end or later * BLOCK))
    one, two = first.draw(rows, seed), second.draw(rows, seed)
    assert np.array_equal(one.source, two.source)
    assert np.array_equal(one.count, two.count)


def order_of(sizes, weights, most, shuffle, seed=1, skip=()):
    names = NAMES[: len(sizes)]
    sources = tuple(
        SourceRows(name * 8, np.array([0, size // 3, size // 2, size], np.int64))
        for name, size in zip(names, sizes, strict=True)
    )
    schedule = Schedule.of(dict(zip(names, weights, strict=True)), BLOCK)
    return Order(seed, sources, schedule.mixture(most), shuffle, skip)


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    limits=st.lists(st.floats(0.5, 3.2), min_size=4, max_size=4),
    shuffle=st.sampled_from([FullShuffle(), WindowShuffle(shards=1), WindowShuffle(shards=2)]),
    worlds=st.lists(st.integers(1, 32), min_size=1, max_size=6),
    batch=st.integers(1, 70),
    seed=SEEDS,
)
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_or_repeated_whatever_the_worlds(
    sizes, weights, limits, shuffle, worlds, batch, seed
):
    most = {
        name: max(1, int(limit * size))
        for name, size, limit in zip(NAMES, sizes, limits, strict=False)
    }
    order = order_of(sizes, weights[: len(sizes)], most, shuffle, seed)
    assert order.rows == sum(most.values())
    read = Counter()
    for step in range(order.rows // batch):
        # The number of ranks changes from step to step, also within an epoch.
        world = worlds[step % len(worlds)]
        for rank in range(world):
            picks = order(np.arange(*slice_of_step(step, batch, rank, world)))
            read.update(zip(*(getattr(picks, n).tolist() for n in PARTS), strict=True))
    rest = order(np.arange(order.rows // batch * batch, order.rows))
    read.update(zip(*(getattr(rest, n).tolist() for n in PARTS), strict=True))
    assert set(read.values()) == {1}
    for number, (name, size) in enumerate(zip(NAMES, sizes, strict=False)):
        epochs = Counter(epoch for source, epoch, _ in read if source == number)
        whole, part = divmod(most[name], size)
        expected = dict.fromkeys(range(whole), size) | ({whole: part} if part else {})
        assert epochs == Counter(expected)


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=SEEDS,
    blocks=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_a_replayed_source_has_its_share_of_every_block(weights, seed, blocks):
    """Replay is a source like any other: general text that is mixed in by a weight."""
    order = order_of([40] * len(weights), weights, {}, FullShuffle(), seed)
    picks = order(np.arange(blocks * BLOCK)).source.reshape(blocks, BLOCK)
    for block in picks:
        count = np.bincount(block, minlength=len(weights))
        assert np.abs(count - np.array(weights) / sum(weights) * BLOCK).max() < 1


def test_a_source_that_ends_leaves_its_share_to_the_others_in_proportion():
    mixture = Schedule.of({"a": 2, "b": 1, "c": 1}, 32).mixture({"a": 40})
    assert [(p.first_block, p.quotas) for p in mixture.phases] == [
        (0, (16, 8, 8)),
        (2, (8, 12, 12)),
        (3, (0, 16, 16)),
    ]
    assert mixture.end is None


def test_a_source_that_ends_with_a_block_has_no_block_of_its_own():
    mixture = Schedule.of({"a": 1, "b": 1}, 32).mixture({"a": 32})
    assert [(p.first_block, p.quotas) for p in mixture.phases] == [(0, (16, 16)), (2, (0, 32))]


def test_two_sources_may_end_in_one_block():
    mixture = Schedule.of({"a": 1, "b": 1, "c": 2}, 32).mixture({"a": 10, "b": 9})
    assert [(p.first_block, p.quotas) for p in mixture.phases] == [
        (0, (8, 8, 16)),
        (1, (2, 1, 29)),
        (2, (0, 0, 32)),
    ]


def test_a_mixture_ends_with_its_last_source():
    mixture = Schedule.of({"a": 1, "b": 1}, 32).mixture({"a": 20, "b": 40})
    assert mixture.end == 60
    drawn = mixture.draw(np.arange(60), 1)
    assert np.bincount(drawn.source).tolist() == [20, 40]
    with pytest.raises(RecipeError, match="row 60 of a mixture that ends at row 60"):
        mixture.draw(np.array([3, 60]), 1)


def test_a_turn_without_a_living_source_ends_the_mixture():
    schedule = Schedule.of({"a": 1, "b": 1}, 32).changed(64, {"a": 1, "b": 0})
    assert schedule.mixture({"a": 20}).end == 64


def test_skipped_rows_do_not_count_as_rows_to_read():
    order = order_of([50], [1], {"a": 50}, FullShuffle(), skip=(IndexRange(10, 15),))
    assert order.rows == 45
    assert len(set(order(np.arange(45)).sample.tolist())) == 45
    behind = order_of([50], [1], {"a": 50}, FullShuffle(), skip=(IndexRange(45, 55),))
    assert behind.rows == 45
    far = order_of([50], [1], {"a": 50}, FullShuffle(), skip=(IndexRange(60, 65),))
    assert far.rows == 50


def test_the_shares_asked_of_the_sources_are_those_of_each_rows_block():
    schedule = Schedule.of({"a": 3, "b": 1}, BLOCK).changed(2 * BLOCK, {"a": 1, "b": 1})
    mixture = schedule.mixture({"b": BLOCK})
    rows = 8 * BLOCK
    order = Order(5, (SourceRows("a", (0, 90)), SourceRows("b", (0, 70))), mixture, FullShuffle())
    source = order(np.arange(rows)).source
    for row in range(0, rows, BLOCK // 2):
        block = source[row // BLOCK * BLOCK :][:BLOCK]
        assert mixture.shares(row) == (np.bincount(block, minlength=2) / BLOCK).tolist()
    # The second source is read no more.
    assert mixture.shares(rows - 1) == [1.0, 0.0]
