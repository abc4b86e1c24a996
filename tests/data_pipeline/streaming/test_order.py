"""Nothing lost, nothing repeated, shares exact by block, the same for every world size."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import RecipeError
from data_pipeline.streaming.mixture import quotas
from data_pipeline.streaming.order import IndexRange, Order, slice_of_step
from data_pipeline.streaming.schedule import Schedule
from data_pipeline.streaming.shuffle import FullShuffle, SourceRows

SIZES = st.lists(st.integers(1, 90), min_size=1, max_size=4)
SEEDS = st.integers(-5, 2**64)
TWO_SOURCES = (SourceRows.of("a", 1000), SourceRows.of("b", 1000))


def order_of(sizes, weights=None, seed=1, block=32, skip=()):
    weights = weights or [1.0] * len(sizes)
    named = {f"s{at}": weight for at, weight in enumerate(weights)}
    sources = [SourceRows.of(f"{at:064x}", size) for at, size in enumerate(sizes)]
    return Order(seed, tuple(sources), Schedule.of(named, block).mixture(), FullShuffle(), skip)


def drawn(order, count, source):
    """(epoch, sample) of a source's draws among the first ``count`` rows, in order."""
    picks = order(np.arange(count))
    own = picks.source == source
    return list(zip(picks.epoch[own].tolist(), picks.sample[own].tolist(), strict=True))


@given(sizes=SIZES, seed=SEEDS, count=st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_an_epoch_reads_everything_once_before_the_next_begins(sizes, seed, count):
    order = order_of(sizes, seed=seed)
    for source, size in enumerate(sizes):
        draws = drawn(order, count, source)
        assert [epoch for epoch, _ in draws] == [at // size for at in range(len(draws))]
        epochs = Counter(epoch for epoch, _ in draws)
        assert len(set(draws)) == len(draws)
        for epoch, number in epochs.items():
            samples = sorted(sample for read, sample in draws if read == epoch)
            if number == size:
                assert samples == list(range(size))


@given(
    weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=6),
    block=st.integers(500, 1500),
    seed=SEEDS,
    blocks=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_shares_hold_within_one_row_of_every_block(weights, block, seed, blocks):
    order = order_of([50] * len(weights), weights, seed, block)
    picks = order(np.arange(blocks * block, (blocks + 1) * block))
    count = np.bincount(picks.source, minlength=len(weights))
    assert np.abs(count - np.array(weights) / sum(weights) * block).max() < 1


@given(sizes=SIZES, seed=SEEDS, at=st.lists(st.integers(0, 2000), max_size=60))
@settings(max_examples=40, deadline=None)
def test_an_index_alone_gives_what_it_gives_among_others(sizes, seed, at):
    order = order_of(sizes, seed=seed)
    whole, some = order(np.arange(2001)), order(at)
    for name in ("source", "epoch", "sample"):
        assert np.array_equal(getattr(whole, name)[at], getattr(some, name))


@pytest.mark.parametrize("global_batch", [1, 24, 37, 192])
def test_global_batches_are_the_same_for_every_world_size(global_batch):
    order = order_of([400, 70, 13], [0.7, 0.25, 0.05], block=64)
    for world in range(1, 33):
        for step in (0, 1, 7, 10**6):
            parts = [slice_of_step(step, global_batch, rank, world) for rank in range(world)]
            together = [index for part in parts for index in range(*part)]
            assert together == list(range(step * global_batch, (step + 1) * global_batch))
            assert max(len(range(*part)) for part in parts) == -(-global_batch // world)
            read = [order(np.arange(*part)).sample for part in parts]
            whole = order(np.arange(step * global_batch, (step + 1) * global_batch)).sample
            assert np.array_equal(np.concatenate(read), whole)


def test_seed_source_and_epoch_each_give_another_order():
    def first_epoch(seed, digest, epoch):
        order = Order(seed, (SourceRows.of(digest, 60),), Schedule.of({"a": 1}, 32).mixture())
        return tuple(order(np.arange(60 * epoch, 60 * (epoch + 1))).sample.tolist())

    orders = {first_epoch(*key) for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]}
    assert len(orders) == 4


def test_the_order_is_frozen():
    order = order_of([7, 3], [0.7, 0.3], seed=11, block=10)
    picks = order(np.arange(12))
    assert picks.source.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]
    assert picks.sample.tolist() == [2, 1, 5, 4, 0, 3, 1, 0, 6, 2, 1, 0]


def test_a_distant_index_needs_no_way_there():
    picks = order_of([50_000, 300], [0.9, 0.1])(np.array([10**15]))
    assert 0 <= picks.sample[0] < 50_000


def test_negative_indices_are_refused():
    with pytest.raises(ValueError, match="-1"):
        order_of([3])(np.array([-1]))


@given(seed=SEEDS, after=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_new_weights_leave_what_was_read_and_repeat_nothing(seed, after):
    before = Schedule.of({"a": 1, "b": 1}, 32)
    later = before.changed(after, {"a": 3, "b": 1})
    first, second = (Order(seed, TWO_SOURCES, schedule.mixture()) for schedule in (before, later))
    rows = np.arange(640)
    old, new = first(rows), second(rows)
    border = -(-after // 32) * 32
    assert np.array_equal(old.source[:border], new.source[:border])
    assert np.array_equal(old.sample[:border], new.sample[:border])
    assert np.bincount(new.source[border : border + 32]).tolist() == [24, 8]
    for source in (0, 1):
        own = new.sample[new.source == source]
        assert len(set(own.tolist())) == len(own)


def test_a_source_may_end_and_come_back():
    schedule = Schedule.of({"a": 1, "b": 1}, 32).changed(32, {"a": 1, "b": 0})
    schedule = schedule.changed(64, {"a": 0, "b": 1})
    picks = Order(1, TWO_SOURCES, schedule.mixture())(np.arange(96))
    assert np.bincount(picks.source[32:64], minlength=2).tolist() == [32, 0]
    assert set(picks.source[64:].tolist()) == {1}
    own = picks.sample[picks.source == 1].tolist()
    assert len(set(own)) == len(own) == 48


def test_changes_out_of_order_are_refused():
    schedule = Schedule.of({"a": 1, "b": 1}, 32).changed(64, {"a": 3, "b": 1})
    with pytest.raises(RecipeError, match="after row 40"):
        schedule.changed(40, {"a": 1, "b": 1})


def test_skipped_rows_are_left_out_and_all_others_stay():
    skip = (IndexRange(5, 9), IndexRange(20, 21))
    plain, skipping = order_of([400, 70]), order_of([400, 70], skip=skip)
    kept = [row for row in range(60) if not (5 <= row < 9 or row == 20)]
    assert np.array_equal(skipping(np.arange(55)).sample, plain(kept).sample)


def test_skips_that_overlap_are_refused():
    with pytest.raises(RecipeError, match="ascending"):
        order_of([5], skip=(IndexRange(0, 5), IndexRange(4, 6)))


def test_quotas_sum_to_the_block_by_largest_remainders():
    assert quotas({"a": 1, "b": 1, "c": 1}, 32) == (11, 11, 10)
    assert quotas({"a": 0.9, "b": 0.1}, 1024) == (922, 102)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "tiny": 0.0001}, "'tiny' .* never be read"),
        ({"a": 0.0}, "one above 0"),
        ({"a": float("nan"), "b": 1.0}, "one above 0"),
        ({"a": -1.0, "b": 2.0}, "one above 0"),
    ],
)
def test_weights_that_cannot_be_honoured_are_refused(weights, message):
    with pytest.raises(RecipeError, match=message):
        quotas(weights, 1024)
