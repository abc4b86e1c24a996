"""Picks -> the stretches of shards that their rows consist of, by array operations alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.packing import SentencePairsPacking
from data_pipeline.streaming.gather import STRETCH, WINDOW, PieceTable, ShardSize, lay_out
from data_pipeline.streaming.order import Picks
from data_pipeline.streaming.packed import PackedSource

_WHOLE = np.dtype(np.complex128)
"""Any type of 16 bytes: numpy copies numbers faster than records."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FoundShard:
    """A shard that some rows lie in.

    Attributes:
        source: index of its source.
        shard: its number there.
        size: its own.
        first_window: number of its first window among those of all these shards.
    """

    source: int
    shard: int
    size: ShardSize
    first_window: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What rows consist of.

    Attributes:
        bounds: int64 [n + 1]: row r consists of the stretches bounds[r] up to bounds[r + 1].
        stretches: ``STRETCH`` [P], windows counted through the shards.
        joined: bool [P], as in ``PieceTable``.
        labels: int64 [n]; None: the packing gives none.
        shards: that the stretches lie in.
    """

    bounds: Places
    stretches: NDArray[Any]
    joined: NDArray[np.bool_] | None
    labels: NDArray[np.int64] | None
    shards: list[FoundShard]


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """Rows in one shard.

    Attributes:
        at: which of the picks, int64 [m].
        counts: stretches of each, int64 [m].
        stretches: ``STRETCH``, row by row.
        joined: as in ``PieceTable``, row by row.
        labels: int64 [m], or None.
        source: index of the source.
        shard: number of the shard.
        size: of the shard.
    """

    at: Places
    counts: Places
    stretches: NDArray[Any]
    joined: NDArray[np.bool_] | None
    labels: NDArray[np.int64] | None
    source: int
    shard: int
    size: ShardSize


@dataclass(frozen=True, slots=True, eq=False)
class RowIndex:
    """Where every row of some sources lies. Safe to use from several threads.

    Attributes:
        sources: in the recipe's order.
        seed: keys what a packing draws afresh in every epoch.
        window: tokens; see ``gather.WINDOW``.
        source_rows: int64 [S]: rows of all sources before each.
        shard_rows: int64 [G + 1]: the same for the shards of all sources, then the total.
        source_shards: int64 [S]: shards of all sources before each.
    """

    sources: tuple[PackedSource, ...]
    seed: int
    window: int
    source_rows: Places
    shard_rows: Places
    source_shards: Places
    _tables: dict[tuple[int, int], PieceTable] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, sources: Sequence[PackedSource], seed: int = 0, window: int = WINDOW) -> "RowIndex":
        """The index of open sources; looks at no plan."""
        rows = np.cumsum([0, *(len(source) for source in sources)])
        shards = np.cumsum([0, *(len(source.data.shards) for source in sources)])
        starts = [first + s.row_starts[:-1] for first, s in zip(rows, sources, strict=False)]
        shard_rows = np.concatenate([*starts, rows[-1:]])
        return cls(tuple(sources), seed, window, rows[:-1], shard_rows, shards[:-1])

    def find(self, picks: Picks) -> Found:
        """What the rows of the picks consist of, in the order of the picks."""
        shares = list(self._shares(picks))
        windows = np.cumsum([0, *(share.size.windows for share in shares)]).tolist()
        for share, first in zip(shares, windows, strict=False):
            if first:
                share.stretches["window"] += first
        if len(shares) == 1:
            return _found(shares, windows, shares[0].counts, None)
        order = np.concatenate([share.at for share in shares])
        grouped = np.concatenate([share.counts for share in shares])
        counts = np.empty_like(grouped)
        counts[order] = grouped
        shifts = (np.cumsum(counts) - counts)[order] - (np.cumsum(grouped) - grouped)
        places = np.repeat(shifts, grouped)
        places += np.arange(len(places))
        return _found(shares, windows, counts, places)

    def _shares(self, picks: Picks) -> Iterator[_Share]:
        rows = picks.sample + self.source_rows.take(picks.source)
        owner = np.searchsorted(self.shard_rows, rows, "right") - 1
        rows -= self.shard_rows.take(owner)
        for number in np.flatnonzero(np.bincount(owner)).tolist():
            source = int(np.searchsorted(self.source_shards, number, "right")) - 1
            at = np.flatnonzero(owner == number)
            yield self._share(source, number - int(self.source_shards[source]), at, rows[at], picks)

    def _share(self, source: int, shard: int, at: Places, rows: Places, picks: Picks) -> _Share:
        labels = None
        if isinstance(self.sources[source].packing, SentencePairsPacking):
            table, labels = self._pairs(source, shard, rows, picks.sample[at], picks.epoch[at])
            rows = np.arange(len(rows))
        else:
            table = self._table(source, shard)
        first = table.offsets.take(rows)
        counts = table.offsets.take(rows + 1) - first
        pieces = np.repeat(first - np.cumsum(counts) + counts, counts)
        pieces += np.arange(len(pieces))
        stretches = table.stretches.view(_WHOLE).take(pieces).view(STRETCH)
        joined = None if table.joined is None else table.joined.take(pieces)
        size = self._size(source, shard)
        return _Share(at, counts, stretches, joined, labels, source, shard, size)

    def _size(self, source: int, shard: int) -> ShardSize:
        data = self.sources[source].data
        opened = data.shards[shard]
        name = f"{data.folder}/{opened.record.name}"
        return ShardSize(name, opened.record.tokens, self.window)

    def _table(self, source: int, shard: int) -> PieceTable:
        """The rows of a shard; made when the first of them is read."""
        made = self._tables.get((source, shard))
        if made is None:
            packed = self.sources[source]
            plan = packed.plan(shard)
            index = packed.data.shards[shard].index
            starts = index.starts.take(plan.pieces[:, 0]) + plan.pieces[:, 1]
            lengths = plan.pieces[:, 2].astype(np.int64)
            size = self._size(source, shard)
            made = lay_out(plan.offsets, starts, lengths, None, packed.shape, size)
            self._tables[source, shard] = made
        return made

    def _pairs(
        self, source: int, shard: int, rows: Places, samples: Places, epochs: Places
    ) -> tuple[PieceTable, NDArray[np.int64]]:
        """Rows of sentence pairs, and their labels: drawn afresh in every epoch."""
        packed = self.sources[source]
        pairs = packed.pairs(shard, rows, self.seed, samples, epochs)
        there = pairs.lengths.reshape(-1) > 0
        offsets = np.append(0, np.cumsum(there.reshape(-1, 2).sum(1)))
        joined = np.tile([False, True], len(rows))[there]
        starts, lengths = pairs.starts.reshape(-1)[there], pairs.lengths.reshape(-1)[there]
        table = lay_out(offsets, starts, lengths, joined, packed.shape, self._size(source, shard))
        return table, pairs.labels


def _found(
    shares: list[_Share], windows: list[int], counts: Places, places: Places | None
) -> Found:
    """Put shares together; ``places`` says where each of their stretches goes, None: it stays."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    shards = [
        FoundShard(share.source, share.shard, share.size, first)
        for share, first in zip(shares, windows, strict=False)
    ]
    if places is None:
        (share,) = shares
        return Found(bounds, share.stretches, share.joined, share.labels, shards)
    stretches = np.empty(len(places), STRETCH)
    wholes = [share.stretches.view(_WHOLE) for share in shares]
    stretches.view(_WHOLE)[places] = np.concatenate(wholes)
    joined = _scattered([share.joined for share in shares], places)
    labels = _scattered(
        [share.labels for share in shares], np.concatenate([share.at for share in shares])
    )
    return Found(bounds, stretches, joined, labels, shards)


def _scattered(values: Sequence[NDArray[Any] | None], places: Places) -> Any:
    """Arrays put where they belong; None if there are none: all sources share one packing."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    joined = np.concatenate(there)
    found = np.empty_like(joined)
    found[places] = joined
    return found
