"""Who reads what: a pure function of (seed, mixture, digests, global index), without state."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import RecipeError
from data_pipeline.randomness import keyed
from data_pipeline.streaming.mixture import Mixture
from data_pipeline.streaming.permutation import permute

ORDER_VERSION = 2
"""Raised when the same seed and data would give another order; kept in every cursor."""


@dataclass(frozen=True, slots=True)
class Picks:
    """The rows at some global indices.

    Attributes:
        source: int64 [n], index of the source.
        epoch: int64 [n], how often that source has been read through before.
        sample: int64 [n], row number in the source.
    """

    source: NDArray[np.int64]
    epoch: NDArray[np.int64]
    sample: NDArray[np.int64]


class IndexRange(NamedTuple):
    """Global indices from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a run.

    Attributes:
        seed: the only randomness.
        sizes: rows of each source.
        digests: hex digest of each source's contents; with it the order does not depend on a
            source's place in the recipe, and two data sets never share a permutation.
        mixture: which source is drawn when.
        skip: ranges of rows that are left out, ascending, in the numbering without any skip.
    """

    seed: int
    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    mixture: Mixture
    skip: tuple[IndexRange, ...] = ()

    def __post_init__(self) -> None:
        require_ascending(self.skip)

    def __call__(self, indices: ArrayLike) -> Picks:
        """The picks at global indices, int [n] from 0 up, in any order."""
        rows = np.array(indices, np.int64)
        if rows.size and rows.min() < 0:
            msg = f"global index {rows.min()}; expected 0 or more"
            raise ValueError(msg)
        for span in self.skip:
            rows[rows >= span.start] += span.stop - span.start
        drawn = self.mixture.draw(rows, self.seed)
        size = np.array(self.sizes, np.int64)[drawn.source]
        epoch, place = np.divmod(drawn.count, size)
        sample = permute(place, size, self._keys(drawn.source, epoch))
        return Picks(drawn.source, epoch, sample)

    def _keys(self, source: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.uint64]:
        """One key for each (source, epoch); a batch holds few of them."""
        count = len(self.sizes)
        pairs, inverse = np.unique(epoch * count + source, return_inverse=True)
        keys = [
            keyed(self.seed, "epoch", self.digests[pair % count], pair // count)
            for pair in pairs.tolist()
        ]
        return np.array(keys, np.uint64)[inverse]


def require_ascending(ranges: tuple[IndexRange, ...]) -> None:
    """RecipeError unless the ranges to skip are ascending, apart and not empty."""
    end = 0
    for span in ranges:
        if not end <= span.start < span.stop:
            msg = f"skip: {[list(span) for span in ranges]}; expected ascending ranges apart"
            raise RecipeError(msg)
        end = span.stop


def slice_of_step(step: int, global_batch: int, rank: int, world: int) -> IndexRange:
    """The global indices that a rank reads in a step: contiguous, and together the whole batch.

    Steps count from 0. The ranks' shares differ by one row where the batch does not divide.
    """
    first = step * global_batch
    return IndexRange(
        first + rank * global_batch // world, first + (rank + 1) * global_batch // world
    )
