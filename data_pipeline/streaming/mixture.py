"""How many rows of each source a block holds, and which place in the block is whose."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from configs.errors import RecipeError
from data_pipeline.randomness import keyed
from data_pipeline.streaming.permutation import permute

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
    """An append-only schedule of quotas: what has been drawn stays as it was."""

    phases: tuple[Phase, ...]
    block: int = BLOCK

    @classmethod
    def of(cls, weights: Mapping[str, float], block: int = BLOCK) -> "Mixture":
        """The mixture that keeps these weights throughout; they need not sum to 1."""
        return cls((Phase(0, quotas(weights, block)),), block)

    def changed(self, after: int, weights: Mapping[str, float]) -> "Mixture":
        """The same with other weights from the first block at or after row ``after`` on."""
        first = -(-after // self.block)
        if first <= self.phases[-1].first_block:
            begun = self.phases[-1].first_block * self.block
            msg = (
                f"mixture: weights change after row {after}, which is block {first} of "
                f"{self.block} rows, but the weights before them begin at row {begun}; "
                "changes lie at least one block apart, in order"
            )
            raise RecipeError(msg)
        phase = Phase(first, quotas(weights, self.block))
        return Mixture((*self.phases, phase), self.block)

    def draw(self, rows: NDArray[np.int64], seed: int) -> Draws:
        """The source of each row (int64 [n], global) and its number among that source's rows."""
        blocks, inverse = np.unique(rows // self.block, return_inverse=True)
        source = np.empty(rows.shape, np.int64)
        count = np.empty(rows.shape, np.int64)
        for first in range(0, len(blocks), _PATTERNS_AT_ONCE):
            part = blocks[first : first + _PATTERNS_AT_ONCE]
            here = np.flatnonzero((inverse >= first) & (inverse < first + len(part)))
            drawn = self._draw(rows[here] % self.block, inverse[here] - first, part, seed)
            source[here], count[here] = drawn.source, drawn.count
        return Draws(source, count)

    def _draw(
        self, place: NDArray[np.int64], row: NDArray[np.int64], blocks: NDArray[np.int64], seed: int
    ) -> Draws:
        """Draws at ``place`` of ``blocks[row]``."""
        first_blocks = np.array([phase.first_block for phase in self.phases])
        quota = np.array([phase.quotas for phase in self.phases], np.int64)
        spans = np.diff(first_blocks)[:, None]
        before = np.concatenate((np.zeros_like(quota[:1]), np.cumsum(spans * quota[:-1], axis=0)))
        phase = np.searchsorted(first_blocks, blocks, "right") - 1
        if quota.shape[1] == 1:
            source, rank = np.zeros_like(place), place
        else:
            patterns = [
                _pattern(self.phases[at].quotas, keyed(seed, "block", block))
                for at, block in zip(phase.tolist(), blocks.tolist(), strict=True)
            ]
            source = np.stack([pattern.source for pattern in patterns])[row, place]
            rank = np.stack([pattern.count for pattern in patterns])[row, place]
        at = phase[row]
        since = blocks[row] - first_blocks[at]
        return Draws(source, before[at, source] + since * quota[at, source] + rank)


@lru_cache(maxsize=256)
def _pattern(quotas: tuple[int, ...], key: int) -> Draws:
    """The draws of one block; kept, since many steps in a row read from the same one."""
    block = sum(quotas)
    slots = permute(np.arange(block), block, key)
    source = np.searchsorted(np.cumsum(quotas), slots, "right")
    count = np.empty_like(source)
    for number in range(len(quotas)):
        own = source == number
        count[own] = np.arange(np.count_nonzero(own))
    return Draws(source, count)


def quotas(weights: Mapping[str, float], block: int) -> tuple[int, ...]:
    """Weights -> whole rows of a block (largest remainders); RecipeError for a share too small."""
    given = list(weights.values())
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not any(given):
        msg = f"mixture: weights {dict(weights)}; expected numbers from 0 up, one above 0"
        raise RecipeError(msg)
    total = math.fsum(given)
    exact = [weight / total * block for weight in given]
    whole = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(given)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_remainder[: block - sum(whole)]:
        whole[at] += 1
    for (name, weight), quota in zip(weights.items(), whole, strict=True):
        if weight > 0 and quota == 0:
            msg = (
                f"mixture: source '{name}' has weight {weight} of {total}, which is less than one "
                f"row in a block of {block}: it would never be read; raise it or leave it out"
            )
            raise RecipeError(msg)
    return tuple(whole)
