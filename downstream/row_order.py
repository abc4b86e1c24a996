"""Which labelled rows each step reads: epochs of permutations, rows of like length together."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from configs.deepspeed_json import BatchPlan
from data_pipeline.randomness import keyed

POOL = 8
"""Batches whose rows are sorted by length together: padding falls, and order stays random."""


@dataclass(frozen=True, slots=True)
class RowOrder:
    """A pure function of lengths and seed; every epoch holds every row once.

    Attributes:
        lengths: tokens of each row.
        seed: of the order.
        plan: how a global batch is split.
    """

    lengths: NDArray[np.int64]
    seed: int
    plan: BatchPlan

    def epoch_ends(self, epochs: int) -> list[int]:
        """How many steps are finished when each epoch's last row has been read."""
        batch = self.plan.global_batch
        return [ceil((epoch + 1) * len(self.lengths) / batch) for epoch in range(epochs)]

    def step(self, step: int, rank: int) -> list[NDArray[np.int64]]:
        """The rows of one rank's micro-batches: its share of the step's global batch.

        Rows are dealt out by length, so that ranks wait little for one another and a
        micro-batch is padded little. Steps run on through epochs without a gap.
        """
        rows = self._global_batch(step)
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        width = self.plan.micro_batch * self.plan.world
        micro_batches = rows.reshape(self.plan.accumulation, width)
        return [micro_batch[rank :: self.plan.world] for micro_batch in micro_batches]

    def _global_batch(self, step: int) -> NDArray[np.int64]:
        batch, count = self.plan.global_batch, len(self.lengths)
        first, last = step * batch // count, ((step + 1) * batch - 1) // count
        orders = np.concatenate([self._epoch(epoch) for epoch in range(first, last + 1)])
        start = step * batch - first * count
        return orders[start : start + batch]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.Generator(np.random.Philox(key=keyed(self.seed, "rows", epoch)))
        order = rng.permutation(len(self.lengths))
        batch = self.plan.global_batch
        # The rows that fill up the batch that the last epoch began, and those that begin one.
        begun = -epoch * len(order) % batch
        whole = begun + max(0, len(order) - begun) // batch * batch
        batches: list[NDArray[np.int64]] = []
        for start in range(begun, whole, POOL * batch):
            pool = order[start : min(start + POOL * batch, whole)]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
        middle = [batches[index] for index in rng.permutation(len(batches))]
        return np.concatenate([order[:begun], *middle, order[whole:]])


def evaluation_batches(lengths: Sequence[int], size: int) -> list[NDArray[np.int64]]:
    """All rows once, those of like length together, ``size`` to a batch."""
    order = np.argsort(np.array(lengths), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
