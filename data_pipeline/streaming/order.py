"""Who reads what: a pure function of (seed, mixture, digests, global index), without state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import RecipeError
from data_pipeline.streaming.mixture import Mixture
from data_pipeline.streaming.shuffle import FullShuffle, Shuffle, SourceRows

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

    def __getitem__(self, part: slice) -> "Picks":
        return Picks(self.source[part], self.epoch[part], self.sample[part])

    @classmethod
    def joined(cls, parts: Sequence["Picks"]) -> "Picks":
        """Picks one after the other."""
        names = ("source", "epoch", "sample")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class IndexRange(NamedTuple):
    """Global indices from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a run.

    Attributes:
        seed: the only randomness.
        sources: rows and digest of each.
        mixture: which source is drawn when.
        shuffle: where in an epoch each row of a source stands.
        skip: ranges of rows that are left out, ascending, in the numbering without any skip.
    """

    seed: int
    sources: tuple[SourceRows, ...]
    mixture: Mixture
    shuffle: Shuffle = FullShuffle()  # noqa: RUF009 -- frozen
    skip: tuple[IndexRange, ...] = ()

    def __post_init__(self) -> None:
        require_ascending(self.skip)

    def __call__(self, indices: ArrayLike) -> Picks:
        """The picks at global indices, int [n] from 0 up, in any order.

        Raises:
            RecipeError: an index behind the end of the mixture.
        """
        rows = np.array(indices, np.int64)
        if rows.size and rows.min() < 0:
            msg = f"global index {rows.min()}; expected 0 or more"
            raise ValueError(msg)
        drawn = self.mixture.draw(self._drawn(rows), self.seed)
        sizes = self._sizes()[drawn.source]
        epoch = drawn.count // sizes
        place = drawn.count - epoch * sizes
        sample = self.shuffle.samples(self.seed, self.sources, drawn.source, epoch, place)
        return Picks(drawn.source, epoch, sample)

    @property
    def rows(self) -> int | None:
        """Global indices that there are; None: no end."""
        if self.mixture.end is None:
            return None
        end = self.mixture.end
        return end - sum(max(0, min(span.stop, end) - span.start) for span in self.skip)

    def shards_from(self, index: int) -> list[list[int]]:
        """For each source the shards that rows from a global index on need, the first ones first.

        With a ``window`` shuffle these are few; with ``full`` they are all; of a source that is
        read no more there are none.
        """
        row = int(self._drawn(np.array([index], np.int64))[0])
        counts, read = self.mixture.drawn_before(row, self.seed), self.mixture.drawn_from(row)
        return [
            self.shuffle.shards_from(self.seed, source, *divmod(count, source.rows)) if on else []
            for source, count, on in zip(self.sources, counts, read, strict=True)
        ]

    def unskipped(self, rows: int) -> int:
        """How many rows, skipped ones counted, the first ``rows`` global indices reach to."""
        return int(self._drawn(np.array([rows - 1], np.int64))[0]) + 1

    def _drawn(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows in the numbering without any skip; changes its argument."""
        for span in self.skip:
            rows[rows >= span.start] += span.stop - span.start
        return rows

    def _sizes(self) -> NDArray[np.int64]:
        return np.array([source.rows for source in self.sources], np.int64)


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
