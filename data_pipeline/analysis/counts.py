"""How often things were seen, and how far two such counts lie apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of things named by 64-bit keys.

    Attributes:
        keys: uint64 [n], ascending, each once.
        counts: int64 [n], at least 1 each.
        firsts: int64 [n], where each was seen for the first time.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]
    firsts: NDArray[np.int64]

    @classmethod
    def of(cls, keys: NDArray[np.uint64], places: NDArray[np.int64]) -> "Counts":
        """Count keys [m] that were seen at ascending places [m]."""
        known, at, counts = np.unique(keys, return_index=True, return_counts=True)
        return cls(known, counts.astype(np.int64), places[at])

    @property
    def total(self) -> int:
        """How much was counted."""
        return int(self.counts.sum())

    def most_frequent(self, number: int) -> NDArray[np.uint64]:
        """Keys of the ``number`` largest counts; ties by key."""
        return self.keys[np.lexsort((self.keys, -self.counts))[:number]]


def merge(parts: Sequence[Counts]) -> Counts:
    """The counts of several parts together."""
    keys = np.concatenate([part.keys for part in parts])
    # A stable sort merges what is in order already, which is far quicker than np.unique.
    order = keys.argsort(kind="stable")
    keys = keys[order]
    begins = np.flatnonzero(_new(keys))
    if not begins.size:
        return parts[0]
    counts = np.concatenate([part.counts for part in parts])[order]
    firsts = np.concatenate([part.firsts for part in parts])[order]
    return Counts(
        keys[begins], np.add.reduceat(counts, begins), np.minimum.reduceat(firsts, begins)
    )


def union(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """All keys of two ascending arrays, ascending, each once."""
    both = np.concatenate((first, second))
    both.sort(kind="stable")
    return both[_new(both)]


def _new(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Where ascending keys differ from the one before."""
    new = np.ones(len(keys), np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    return new


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two distributions over the union of their keys.

    Attributes:
        keys: uint64 [n], ascending.
        shares: fp64 [2, n]; each row sums to 1.
        contributions: fp64 [2, n], bits: what each key adds to the divergence from either side.
    """

    keys: NDArray[np.uint64]
    shares: NDArray[np.float64]
    contributions: NDArray[np.float64]

    @property
    def divergence(self) -> float:
        """Jensen-Shannon divergence in bits: 0 when equal, 1 when nothing is shared (Lin, 1991)."""
        return min(1.0, max(0.0, float(self.contributions.sum())))


def compare(first: Counts, second: Counts) -> Comparison:
    """Set two counts, neither of them empty, side by side."""
    keys = union(first.keys, second.keys)
    shares = np.zeros((2, len(keys)))
    for row, side in zip(shares, (first, second), strict=True):
        row[np.searchsorted(keys, side.keys)] = side.counts / side.total
    middle = shares.mean(axis=0)
    ratio = np.divide(shares, middle, out=np.ones_like(shares), where=shares > 0)
    return Comparison(keys, shares, shares * np.log2(ratio) / 2)
