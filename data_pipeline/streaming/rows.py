"""Packed rows of open shards: many at once, by array operations alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.example import Example, ExampleKey
from data_pipeline.shards import TokenizerRecord
from data_pipeline.streaming.order import Picks
from data_pipeline.streaming.packed import PackedSource


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that lie in one shard: their pieces, in order.

    Attributes:
        tokens: of the whole shard.
        annotations: of the whole shard.
        counts: int64 [rows], pieces a row.
        starts: int64 [P], first token of each piece in the shard.
        lengths: int64 [P].
    """

    tokens: NDArray[Any]
    annotations: NDArray[np.uint8]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowReader:
    """Turns picks into examples.

    Attributes:
        sources: in the recipe's order, all made by one tokenizer.
        length: tokens a row.
        prefix: special ids before every piece, int32.
        suffix: special ids after every piece, int32.
        padding: the id that fills a row: the padding id, or for tokenizers without one the end of
            text, or 0; nothing attends to it or is predicted from it.
    """

    sources: tuple[PackedSource, ...]
    length: int
    prefix: NDArray[np.int32]
    suffix: NDArray[np.int32]
    padding: int

    @classmethod
    def of(cls, sources: tuple[PackedSource, ...], length: int) -> "RowReader":
        """A reader of sources that were made by the same tokenizer."""
        tokenizer = sources[0].data.manifest.tokenizer
        return cls(
            sources,
            length,
            np.array(tokenizer.prefix, np.int32),
            np.array(tokenizer.suffix, np.int32),
            _padding_id(tokenizer.special),
        )

    @property
    def tokenizer(self) -> TokenizerRecord:
        """What made the tokens."""
        return self.sources[0].data.manifest.tokenizer

    def read(self, picks: Picks) -> list[Example]:
        """The examples of the picks, in their order."""
        if not len(picks.sample):
            return []
        shards = self._shards(picks)
        order = np.lexsort((shards, picks.source))
        keys = picks.source[order] * (shards.max() + 1) + shards[order]
        bounds = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
        groups = [
            self._group(picks, order[first:stop], int(shards[order[first]]))
            for first, stop in pairwise(bounds)
        ]
        return self._examples(picks, order, self._fill(groups))

    def _shards(self, picks: Picks) -> NDArray[np.int64]:
        shards = np.zeros_like(picks.sample)
        for number, source in enumerate(self.sources):
            own = picks.source == number
            shards[own] = np.searchsorted(source.row_starts, picks.sample[own], "right") - 1
        return shards

    def _group(self, picks: Picks, at: NDArray[np.int64], shard: int) -> _Group:
        source = self.sources[int(picks.source[at[0]])]
        plan = source.plan(shard)
        row = picks.sample[at] - source.row_starts[shard]
        first = plan.offsets[row]
        counts = plan.offsets[row + 1] - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pieces = plan.pieces[np.repeat(first, counts) + within].astype(np.int64)
        starts = source.data.shards[shard].index.starts[pieces[:, 0]] + pieces[:, 1]
        return _Group(
            source.data.shard_tokens(shard),
            source.data.shard_annotations(shard),
            counts,
            starts,
            pieces[:, 2],
        )

    def _fill(self, groups: list[_Group]) -> "_Rows":
        counts = np.concatenate([group.counts for group in groups])
        lengths = np.concatenate([group.lengths for group in groups])
        starts = np.concatenate([group.starts for group in groups])
        tiles = _tile(counts, lengths + len(self.prefix) + len(self.suffix), self.length)
        rows = _Rows.empty(len(counts), self.length)
        np.copyto(rows.segments, np.repeat(tiles.segments, tiles.sizes))
        begins = np.repeat(tiles.begins.astype(np.int32), tiles.sizes)
        np.subtract(np.arange(len(begins), dtype=np.int32), begins, out=rows.positions)
        # Padding goes on where its row's last piece ends, so that no strange page is touched.
        shifts = np.empty_like(tiles.sizes)
        shifts[tiles.pieces] = starts - tiles.begins[tiles.pieces] - len(self.prefix)
        shifts[tiles.paddings] = shifts[tiles.paddings - 1]
        places = np.repeat(shifts, tiles.sizes)
        places += np.arange(len(places))
        first = 0
        for group in groups:
            part = slice(first, first + len(group.counts) * self.length)
            rows.tokens[part] = group.tokens.take(places[part], mode="clip")
            group.annotations.take(places[part], mode="clip", out=rows.annotations[part])
            first = part.stop
        self._add_special(rows, tiles)
        return rows

    def _add_special(self, rows: "_Rows", tiles: "_Tiles") -> None:
        begins = tiles.begins[tiles.pieces]
        ends = begins + tiles.sizes[tiles.pieces]
        padding = np.flatnonzero(rows.segments == 0)
        rows.special.fill(False)  # noqa: FBT003 -- numpy's own signature
        rows.positions[padding] = 0
        for places, ids in (
            (padding, np.int32(self.padding)),
            (begins[:, None] + np.arange(len(self.prefix)), self.prefix),
            (ends[:, None] + np.arange(-len(self.suffix), 0), self.suffix),
        ):
            rows.tokens[places] = ids
            rows.annotations[places] = 0
            rows.special[places] = True

    def _examples(self, picks: Picks, order: NDArray[np.int64], rows: "_Rows") -> list[Example]:
        digests = [source.digest63 for source in self.sources]
        keys = [
            ExampleKey(source, digests[source], sample, epoch)
            for source, sample, epoch in zip(
                picks.source[order].tolist(),
                picks.sample[order].tolist(),
                picks.epoch[order].tolist(),
                strict=True,
            )
        ]
        made = [Example(*row) for row in zip(*rows.by_row(self.length), keys, strict=True)]
        return [made[at] for at in np.argsort(order).tolist()]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The fields of Example for many rows, each flat [rows * length]."""

    tokens: NDArray[np.int32]
    segments: NDArray[np.int32]
    positions: NDArray[np.int32]
    special: NDArray[np.bool_]
    annotations: NDArray[np.uint8]

    @classmethod
    def empty(cls, rows: int, length: int) -> "_Rows":
        size = rows * length
        return cls(
            np.empty(size, np.int32),
            np.empty(size, np.int32),
            np.empty(size, np.int32),
            np.empty(size, np.bool_),
            np.empty(size, np.uint8),
        )

    def by_row(self, length: int) -> list[NDArray[Any]]:
        """[rows, length] views, in the order of Example's fields."""
        fields = (self.tokens, self.segments, self.positions, self.special, self.annotations)
        return [field.reshape(-1, length) for field in fields]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Rows as an unbroken run of tiles: each row's pieces, then its padding (perhaps empty).

    Attributes:
        sizes: int64 [P + rows], tokens of each tile; they sum to rows * length.
        begins: int64 [P + rows], where it begins.
        segments: int32 [P + rows]: 1, 2, ... in each row, 0 for padding.
        pieces: int64 [P], which tiles are pieces.
        paddings: int64 [rows], which tiles are padding.
    """

    sizes: NDArray[np.int64]
    begins: NDArray[np.int64]
    segments: NDArray[np.int32]
    pieces: NDArray[np.int64]
    paddings: NDArray[np.int64]


def _tile(counts: NDArray[np.int64], costs: NDArray[np.int64], length: int) -> _Tiles:
    stops = np.cumsum(counts)
    row = np.repeat(np.arange(len(counts)), counts)
    pieces = np.arange(len(costs)) + row
    paddings = stops + np.arange(len(counts))
    sizes = np.empty(len(costs) + len(counts), np.int64)
    sizes[pieces] = costs
    sizes[paddings] = length - np.add.reduceat(costs, stops - counts)
    segments = np.zeros(len(sizes), np.int32)
    segments[pieces] = np.arange(len(costs)) - (stops - counts)[row] + 1
    return _Tiles(sizes, np.cumsum(sizes) - sizes, segments, pieces, paddings)


def _padding_id(special: Mapping[str, int]) -> int:
    return special.get("pad", special.get("eos", 0))
