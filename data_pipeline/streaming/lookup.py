"""Picks -> the stretches of shards that their rows consist of, by array operations alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.packing import SentencePairsPacking
from data_pipeline.streaming.gather import (
    WINDOW,
    PieceTable,
    ShardSize,
    join,
    lay_out,
    take_rows,
)
from data_pipeline.streaming.order import Picks
from data_pipeline.streaming.packed import PackedSource

_WORTH = 4
"""A table of a shard is made when one in so many of its rows has been asked for."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What rows consist of.

    Attributes:
        picks: the rows.
        shard: int64 [n], number of the shard that each lies in, among those of the index.
        bounds: int64 [n + 1]: row r consists of the stretches bounds[r] up to bounds[r + 1].
        stretches: ``STRETCH`` [P], windows counted through all shards of the index.
        labels: int64 [n]; None: the packing gives none.
    """

    picks: Picks
    shard: Places
    bounds: Places
    stretches: NDArray[Any]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.bounds) - 1

    def __getitem__(self, part: slice) -> "Found":
        """Some of the rows; no copy. ``part`` has whole bounds and step 1."""
        bounds = self.bounds[part.start : part.stop + 1]
        return Found(
            self.picks[part],
            self.shard[part],
            bounds - bounds[0],
            self.stretches[bounds[0] : bounds[-1]],
            None if self.labels is None else self.labels[part],
        )

    @classmethod
    def joined(cls, parts: Sequence["Found"]) -> "Found":
        """Rows one after the other."""
        if len(parts) == 1:
            return parts[0]
        counts = np.concatenate([np.diff(part.bounds) for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        return cls(
            Picks.joined([part.picks for part in parts]),
            np.concatenate([part.shard for part in parts]),
            np.append(0, np.cumsum(counts)),
            join([part.stretches for part in parts]),
            np.concatenate(labels) if labels else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ShardPlace:
    """A shard of the index.

    Attributes:
        source: index of its source.
        shard: its number there.
        size: its own, with the place of its windows among those of all shards.
    """

    source: int
    shard: int
    size: ShardSize


@dataclass(frozen=True, slots=True, eq=False)
class RowIndex:
    """Where every row of some sources lies. Safe to use from several threads.

    Attributes:
        sources: in the recipe's order, all packed alike.
        seed: keys what a packing draws afresh in every epoch.
        shards: of all sources.
        source_rows: int64 [S]: rows of all sources before each.
        shard_rows: int64 [G + 1]: rows of all shards before each, then the total.
    """

    sources: tuple[PackedSource, ...]
    seed: int
    shards: tuple[ShardPlace, ...]
    source_rows: Places
    shard_rows: Places
    _tables: dict[int, PieceTable] = field(default_factory=dict, repr=False)
    _asked: dict[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, sources: Sequence[PackedSource], seed: int = 0, window: int = WINDOW) -> "RowIndex":
        """The index of open sources; looks at no plan. ``window``: see ``gather.WINDOW``."""
        shards: list[ShardPlace] = []
        windows = 0
        for number, source in enumerate(sources):
            for at, opened in enumerate(source.data.shards):
                name = f"{source.data.folder}/{opened.record.name}"
                itemsize = opened.index.dtype.itemsize
                size = ShardSize(name, opened.record.tokens, itemsize, windows, window)
                shards.append(ShardPlace(number, at, size))
                windows += size.windows
        rows = np.cumsum([0, *(len(source) for source in sources)])
        starts = [first + s.row_starts[:-1] for first, s in zip(rows, sources, strict=False)]
        return cls(
            tuple(sources),
            seed,
            tuple(shards),
            rows[:-1],
            np.concatenate([*starts, rows[-1:]]),
        )

    def find(self, picks: Picks) -> Found:
        """What the rows of the picks (one at least) consist of, in the order of the picks."""
        rows = picks.sample + self.source_rows.take(picks.source)
        if int(picks.sample.min()) < 0 or int(rows.max()) >= int(self.shard_rows[-1]):
            msg = f"rows up to {rows.max()} of {self.shard_rows[-1]}"
            raise IndexError(msg)
        owner = np.searchsorted(self.shard_rows, rows, "right") - 1
        rows -= self.shard_rows.take(owner)
        used = np.flatnonzero(np.bincount(owner))
        number = np.zeros(len(self.shards), np.int64)
        number[used] = np.arange(len(used))
        table = number.take(owner)
        if isinstance(self.sources[0].packing, SentencePairsPacking):
            return self._find_pairs(picks, owner, rows, used.tolist(), table)
        tables = []
        for place, shard in enumerate(used.tolist()):
            if (known := self._tables.get(shard)) is None:
                own = np.flatnonzero(table == place)
                known, rows[own] = self._fresh(shard, rows[own])
            tables.append(known)
        made = take_rows(tables, table, rows)
        return Found(picks, owner, made.offsets, made.stretches, None)

    def shards_of(self, found: Found) -> list[ShardPlace]:
        """The shards that rows lie in, ascending."""
        return [self.shards[number] for number in np.flatnonzero(np.bincount(found.shard))]

    def _fresh(self, number: int, rows: Places) -> tuple[PieceTable, Places]:
        """A table with these rows of a shard, and where they stand in it.

        Of all its rows as soon as so many were asked for that the work is worth it, and kept then:
        the first rows of a run do not wait for a table of every shard.
        """
        place = self.shards[number]
        packed = self.sources[place.source]
        plan, index = packed.plan(place.shard), packed.data.shards[place.shard].index
        asked = self._asked.get(number, 0) + len(rows)
        self._asked[number] = asked
        whole = asked * _WORTH >= len(plan)
        chosen = np.arange(len(plan)) if whole else rows
        first = plan.offsets.take(chosen)
        counts = plan.offsets.take(chosen + 1) - first
        offsets = np.append(0, np.cumsum(counts))
        pieces = plan.pieces.take(
            np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1]), axis=0
        )
        starts = index.starts.take(pieces[:, 0]) + pieces[:, 1]
        lengths = pieces[:, 2].astype(np.int64)
        made = lay_out(offsets, starts, lengths, None, packed.shape, place.size)
        if not whole:
            return made, np.arange(len(rows))
        self._tables[number] = made
        return made, rows

    def _find_pairs(
        self, picks: Picks, owner: Places, rows: Places, used: list[int], table: Places
    ) -> Found:
        """Rows of sentence pairs, drawn afresh in every epoch."""
        labels = np.empty(len(rows), np.int64)
        places = np.empty_like(rows)
        tables = []
        for number, shard in enumerate(used):
            own = np.flatnonzero(table == number)
            place = self.shards[shard]
            packed = self.sources[place.source]
            pairs = packed.pairs(
                place.shard, rows[own], self.seed, picks.sample[own], picks.epoch[own]
            )
            there = pairs.lengths > 0
            offsets = np.append(0, np.cumsum(np.count_nonzero(there, axis=1)))
            second = np.broadcast_to([False, True], there.shape)[there]
            starts, lengths = pairs.starts[there], pairs.lengths[there]
            tables.append(lay_out(offsets, starts, lengths, second, packed.shape, place.size))
            labels[own], places[own] = pairs.labels, np.arange(len(own))
        made = take_rows(tables, table, places)
        return Found(picks, owner, made.offsets, made.stretches, labels)
