"""Every epoch reads every row once, whatever the ranks; rows of like length meet."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.deepspeed_json import BatchPlan
from downstream.row_order import RowOrder, evaluation_batches


def order_of(count: int, plan: BatchPlan, seed: int = 0) -> RowOrder:
    lengths = np.random.default_rng(count).integers(3, 129, count)
    return RowOrder(lengths, seed, plan)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 300),
    micro=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_row_once_an_epoch(count, micro, accumulation, world, seed):
    plan = BatchPlan(micro * accumulation * world, micro, accumulation, world)
    order = order_of(count, plan, seed)
    epochs = 3
    steps = order.epoch_ends(epochs)[-1]
    read = []
    for step in range(steps):
        ranks = [order.step(step, rank) for rank in range(world)]
        assert all(len(parts) == accumulation for parts in ranks)
        assert all(len(rows) == micro for parts in ranks for rows in parts)
        read += [int(row) for parts in ranks for rows in parts for row in rows]
    assert len(read) >= epochs * count
    counted = Counter(read)
    most, least = max(counted.values()), min(counted.get(row, 0) for row in range(count))
    assert least >= epochs
    assert most <= epochs + 1 + plan.global_batch // count


def test_the_global_batch_does_not_depend_on_its_split():
    whole = order_of(100, BatchPlan(12, 12, 1, 1))
    split = order_of(100, BatchPlan(12, 2, 3, 2))
    for step in range(20):
        alone = set(whole.step(step, 0)[0].tolist())
        together = {int(r) for rank in range(2) for rows in split.step(step, rank) for r in rows}
        assert alone == together


def test_epochs_differ_and_seeds_differ():
    plan = BatchPlan(10, 10, 1, 1)
    order = order_of(100, plan)
    first, second = (np.concatenate([order.step(s + e, 0)[0] for s in range(10)]) for e in (0, 10))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()
    assert order_of(100, plan, 1).step(0, 0)[0].tolist() != first[:10].tolist()


def test_like_lengths_meet():
    order = order_of(800, BatchPlan(10, 10, 1, 1))
    batches = [order.lengths[order.step(step, 0)[0]] for step in range(80)]
    padded = sum(10 * batch.max() for batch in batches)
    shuffled = np.random.default_rng(0).permutation(order.lengths).reshape(80, 10)
    assert padded < 0.75 * sum(10 * shuffled.max(axis=1))


def test_evaluation_reads_every_row_once():
    batches = evaluation_batches([5, 1, 4, 2, 3, 9, 7], 3)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(7))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert batches[0].tolist() == [1, 3, 4]
