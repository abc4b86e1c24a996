"""Shuffles: where in an epoch each row of a source stands. To add one: write it, then name it.

A shuffle is a pure function of (seed, digest, rows of each shard, epoch, place). It holds no state
but what it would find again, and no process waits for another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.schema import Config
from data_pipeline.randomness import keyed
from data_pipeline.streaming.permutation import permute

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """A source as an order knows it.

    Attributes:
        digest: hex digest of its contents; with it the order does not depend on a source's place
            in the recipe, and two data sets never share a permutation.
        row_starts: int64 [shards + 1]: first row of each shard, then their total.
    """

    digest: str
    row_starts: Places

    @classmethod
    def of(cls, digest: str, rows: int) -> "SourceRows":
        """A source in one shard."""
        return cls(digest, np.array([0, rows], np.int64))

    @property
    def rows(self) -> int:
        """Rows of all shards: one epoch."""
        return int(self.row_starts[-1])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.row_starts) - 1


class Shuffle(Protocol):
    """What a member of the family offers."""

    @property
    def identity(self) -> str:
        """Its name and settings: the same identity gives the same order."""
        ...

    def samples(
        self,
        seed: int,
        sources: Sequence[SourceRows],
        source: Places,
        epoch: Places,
        place: Places,
    ) -> Places:
        """The row, int64 [n], at each place of an epoch of a source; a bijection in each epoch."""
        ...

    def shards_from(self, seed: int, source: SourceRows, epoch: int, place: int) -> list[int]:
        """The shards that a reader at this place needs, those it needs first before the others."""
        ...

    def shards_at_once(self, shards: int) -> int:
        """How many of a source's shards are mixed with one another."""
        ...


class FullShuffle(Config):
    """One permutation of all rows: the best mixing, for shards that are at hand."""

    name: Literal["full"] = "full"

    @property
    def identity(self) -> str:
        """Its name: the same identity gives the same order."""
        return self.name

    def samples(
        self,
        seed: int,
        sources: Sequence[SourceRows],
        source: Places,
        epoch: Places,
        place: Places,
    ) -> Places:
        """The row, int64 [n], at each place of an epoch of a source; a bijection in each epoch."""
        found = np.empty_like(place)
        for number, which, here in _passes(source, epoch):
            own = sources[number]
            key = keyed(seed, "epoch", own.digest, which)
            found[here] = permute(place[here], own.rows, key)
        return found

    def shards_from(self, seed: int, source: SourceRows, epoch: int, place: int) -> list[int]:
        """All of them, from any place."""
        del seed, epoch, place
        return list(range(source.shards))

    def shards_at_once(self, shards: int) -> int:
        """All of them."""
        return shards


class WindowShuffle(Config):
    """The shards in an order of their own in each epoch, all rows mixed within so many at a time.

    For shards that are far away: no more than two windows of them are needed at once.
    """

    name: Literal["window"] = "window"
    shards: int = Field(8, ge=1, description="shards whose rows are mixed with one another")

    @property
    def identity(self) -> str:
        """Its name and settings: the same identity gives the same order."""
        return f"{self.name} {self.shards}"

    def samples(
        self,
        seed: int,
        sources: Sequence[SourceRows],
        source: Places,
        epoch: Places,
        place: Places,
    ) -> Places:
        """The row, int64 [n], at each place of an epoch of a source; a bijection in each epoch."""
        found = np.empty_like(place)
        for number, which, here in _passes(source, epoch):
            windows = _windows(seed, sources[number], which, self.shards)
            found[here] = windows.samples(place[here])
        return found

    def shards_from(self, seed: int, source: SourceRows, epoch: int, place: int) -> list[int]:
        """Those of the place's window, then those of the next one, perhaps of the next epoch."""
        windows = _windows(seed, source, epoch, self.shards)
        at = windows.window_of(place)
        following = windows, at + 1
        if at + 1 == windows.count:
            following = _windows(seed, source, epoch + 1, self.shards), 0
        return list(dict.fromkeys([*windows.shards(at), *following[0].shards(following[1])]))

    def shards_at_once(self, shards: int) -> int:
        """A window of them."""
        return min(self.shards, shards)


ShuffleConfig = Annotated[FullShuffle | WindowShuffle, Field(discriminator="name")]


def _passes(source: Places, epoch: Places) -> Iterator[tuple[int, int, Places]]:
    """Each source and epoch that there is, and at which indices; there are few of them."""
    for number in np.flatnonzero(np.bincount(source)).tolist():
        own = np.flatnonzero(source == number)
        epochs = epoch[own]
        first, last = int(epochs.min()), int(epochs.max())
        if first == last:
            yield number, first, own
            continue
        for which in np.unique(epochs).tolist():
            yield number, which, own[epochs == which]


@dataclass(frozen=True, slots=True)
class _Windows:
    """An epoch of a source as windows of shards.

    Attributes:
        width: shards a window; the last one may have fewer.
        order: int64 [shards]: the epoch's order of them.
        starts: int64 [shards + 1]: first place of each shard in that order, then their total.
        borders: int64 [windows + 1]: first place of each window, then their total.
    """

    seed: int
    epoch: int
    source: SourceRows
    width: int
    order: Places
    starts: Places
    borders: Places

    @property
    def count(self) -> int:
        return len(self.borders) - 1

    def window_of(self, place: int) -> int:
        return int(np.searchsorted(self.borders, place, "right")) - 1

    def shards(self, window: int) -> list[int]:
        part: list[int] = self.order[window * self.width : (window + 1) * self.width].tolist()
        return part

    def samples(self, place: Places) -> Places:
        window = np.searchsorted(self.borders, place, "right") - 1
        numbers, inverse = np.unique(window, return_inverse=True)
        keys = [
            keyed(self.seed, "window", self.source.digest, self.epoch, number)
            for number in numbers.tolist()
        ]
        begin = self.borders[window]
        size = self.borders[window + 1] - begin
        mixed = begin + permute(place - begin, size, np.array(keys, np.uint64)[inverse])
        at = np.searchsorted(self.starts, mixed, "right") - 1
        found: Places = self.source.row_starts[self.order[at]] + mixed - self.starts[at]
        return found


@lru_cache(maxsize=64)
def _windows(seed: int, source: SourceRows, epoch: int, width: int) -> _Windows:
    """Kept, since an epoch is asked for again and again; a source is told by its identity."""
    key = keyed(seed, "shards", source.digest, epoch)
    order = permute(np.arange(source.shards), source.shards, key)
    starts = np.append(0, np.cumsum(np.diff(source.row_starts)[order]))
    borders = np.append(starts[:-1:width], starts[-1])
    return _Windows(seed, epoch, source, width, order, starts, borders)
