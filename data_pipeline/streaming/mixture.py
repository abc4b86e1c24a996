"""How many rows of each source a block holds, and which place in the block is whose."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from configs.errors import RecipeError
from data_pipeline.randomness import keyed
from data_pipeline.streaming.permutation import permutations

BLOCK = 1024
"""Rows a block: shares are exact over each, and a weight that comes to no row of it is refused."""

_PATTERNS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Phase:
    """Quotas that hold from a block on, until the next phase.

    Attributes:
        first_block: the block that it begins with.
        quotas: rows a block of each source; they sum to the block.
    """

    first_block: int
    quotas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draws:
    """Which source each row comes from, and how many rows of that source came before.

    Attributes:
        source: int64 [n].
        count: int64 [n]; rises by one from each row of a source to its next.
    """

    source: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Quotas of every block, in closed form; a ``Schedule`` makes it.

    Attributes:
        phases: in order, the first from block 0 on.
        block: rows a block. The last one may have fewer, where the mixture ends.
        end: rows in all, where the sources may be read so often and no more; None: no end.
    """

    phases: tuple[Phase, ...]
    block: int = BLOCK
    end: int | None = None

    def draw(self, rows: NDArray[np.int64], seed: int) -> Draws:
        """The source of each row (int64 [n], global) and its number among that source's rows.

        Raises:
            RecipeError: a row behind the end.
        """
        if self.end is not None and rows.size and int(rows.max()) >= self.end:
            msg = (
                f"row {int(rows.max())} of a mixture that ends at row {self.end}, since its "
                "sources may not be read more often (most_epochs)"
            )
            raise RecipeError(msg)
        blocks, inverse = self._blocks(rows)
        if len(blocks) <= _PATTERNS_AT_ONCE:
            return self._draw(rows % self.block, inverse, blocks, seed)
        source = np.empty(rows.shape, np.int64)
        count = np.empty(rows.shape, np.int64)
        for first in range(0, len(blocks), _PATTERNS_AT_ONCE):
            part = blocks[first : first + _PATTERNS_AT_ONCE]
            here = np.flatnonzero((inverse >= first) & (inverse < first + len(part)))
            drawn = self._draw(rows[here] % self.block, inverse[here] - first, part, seed)
            source[here], count[here] = drawn.source, drawn.count
        return Draws(source, count)

    def _blocks(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks that rows lie in, ascending, and the number among them of each row's own."""
        block = rows // self.block
        first, last = (int(block.min()), int(block.max())) if len(block) else (0, 0)
        if (last - first) * self.block <= 2 * len(block):
            return np.arange(first, last + 1), block - first
        return np.unique(block, return_inverse=True)

    def _draw(
        self, place: NDArray[np.int64], row: NDArray[np.int64], blocks: NDArray[np.int64], seed: int
    ) -> Draws:
        """Draws at ``place`` of ``blocks[row]``."""
        table = _table(self.phases)
        phase = np.searchsorted(table.first_blocks, blocks, "right") - 1
        since = blocks - table.first_blocks[phase]
        before = table.before[phase] + since[:, None] * table.quotas[phase]
        sources = before.shape[1]
        if sources == 1:
            return Draws(np.zeros_like(place), before[row, 0] + place)
        drawn = np.empty((2, len(blocks), self.block), np.int64)
        for at in np.flatnonzero(np.bincount(phase)).tolist():
            own = np.flatnonzero(phase == at)
            keys = tuple(keyed(seed, "block", block) for block in blocks[own].tolist())
            pattern = _patterns(self.phases[at].quotas, self.block, keys)
            drawn[:, own] = pattern.source, pattern.count
        there = row * self.block + place
        source, rank = (each.reshape(-1).take(there) for each in drawn)
        return Draws(source, before.reshape(-1).take(row * sources + source) + rank)

    def drawn_before(self, row: int, seed: int) -> list[int]:
        """How many rows of each source come before a row; at most those that there are."""
        row = row if self.end is None else min(row, self.end)
        block, place = divmod(row, self.block)
        table = _table(self.phases)
        at = int(np.searchsorted(table.first_blocks, block, "right")) - 1
        phase = self.phases[at]
        counts = table.before[at] + (block - phase.first_block) * table.quotas[at]
        if place:
            (source,) = _patterns(phase.quotas, self.block, (keyed(seed, "block", block),)).source
            counts = counts + np.bincount(source[:place], minlength=len(counts))
        found: list[int] = counts.tolist()
        return found

    def shares(self, row: int) -> list[float]:
        """The share of each source among the rows of a row's block."""
        first = [phase.first_block for phase in self.phases]
        quota = self.phases[max(0, bisect_right(first, row // self.block) - 1)].quotas
        return [each / sum(quota) for each in quota]

    def drawn_from(self, row: int) -> list[bool]:
        """Whether each source is drawn in the block of a row or later."""
        first = [phase.first_block for phase in self.phases]
        now = max(0, bisect_right(first, row // self.block) - 1)
        return [any(shares) for shares in zip(*(p.quotas for p in self.phases[now:]), strict=True)]


@dataclass(frozen=True, slots=True)
class _Table:
    """Phases as arrays: int64 [phases], and [phases, S] rows a block, and rows before the phase."""

    first_blocks: NDArray[np.int64]
    quotas: NDArray[np.int64]
    before: NDArray[np.int64]


@lru_cache(maxsize=16)
def _table(phases: tuple[Phase, ...]) -> _Table:
    first_blocks = np.array([phase.first_block for phase in phases])
    quota = np.array([phase.quotas for phase in phases], np.int64)
    spans = np.diff(first_blocks)[:, None]
    before = np.concatenate((np.zeros_like(quota[:1]), np.cumsum(spans * quota[:-1], axis=0)))
    return _Table(first_blocks, quota, before)


@lru_cache(maxsize=256)
def _patterns(quotas: tuple[int, ...], block: int, keys: tuple[int, ...]) -> Draws:
    """The draws of blocks, [blocks, block] each, as if each was the first.

    Kept, since many steps in a row read from the same ones. Behind the last row of a mixture that
    ends in a block there is nothing to be read.
    """
    rows = sum(quotas)
    slots = permutations(rows, keys)
    source = np.zeros((len(keys), block), np.int64)
    source[:, :rows] = np.repeat(np.arange(len(quotas)), quotas)[slots]
    # Sorted by source, and in their order within each, rows are counted from 0 in every source.
    # Of 16 bits, since these are sorted in linear time.
    by_source = np.argsort(source[:, :rows].astype(np.uint16), axis=1, kind="stable")
    count = np.zeros_like(source)
    numbers = np.arange(rows) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    np.put_along_axis(count, by_source, numbers[None], axis=1)
    return Draws(source, count)


def quotas(weights: Mapping[str, float], block: int) -> tuple[int, ...]:
    """Weights -> whole rows of a block (largest remainders); RecipeError for a share too small."""
    given = list(weights.values())
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not any(given):
        msg = f"mixture: weights {dict(weights)}; expected numbers from 0 up, one above 0"
        raise RecipeError(msg)
    total = math.fsum(given)
    whole = apportion(given, block)
    for (name, weight), quota in zip(weights.items(), whole, strict=True):
        if weight > 0 and quota == 0:
            msg = (
                f"mixture: source '{name}' has weight {weight} of {total}, which is less than one "
                f"row in a block of {block}: it would never be read; raise it or leave it out"
            )
            raise RecipeError(msg)
    return tuple(whole)


def apportion(weights: Sequence[float], rows: int) -> list[int]:
    """Whole rows in proportion to the weights, as many as asked (largest remainders)."""
    total = math.fsum(weights)
    exact = [weight / total * rows for weight in weights]
    whole = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(whole)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_remainder[: rows - sum(whole)]:
        whole[at] += 1
    return whole
