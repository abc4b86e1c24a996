"""Rows of open shards: what the index finds is copied, and special ids are put in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.rows import PieceLayout, RowKeys, Rows, special_places
from data_pipeline.shards import TokenizerRecord
from data_pipeline.streaming.gather import EDGE, WINDOW, Gathered, Stored, gather
from data_pipeline.streaming.lookup import Found, FoundShard, RowIndex
from data_pipeline.streaming.order import Picks
from data_pipeline.streaming.packed import PackedSource


@dataclass(frozen=True, slots=True)
class RowReader:
    """Turns picks into rows. Safe to use from several threads.

    Attributes:
        index: where each row lies; all sources were made by one tokenizer.
        length: tokens a row.
        prefix: special ids before every document.
        suffix: special ids after every piece.
        padding: the id that fills a row: the padding id, or for tokenizers without one the end of
            text, or 0; nothing attends to it or is predicted from it.
        digests: int64 [S], of the sources: what their rows' randomness is keyed by.
    """

    index: RowIndex
    length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    padding: int
    digests: NDArray[np.int64]

    @classmethod
    def of(
        cls, sources: Sequence[PackedSource], length: int, seed: int = 0, window: int = WINDOW
    ) -> "RowReader":
        """A reader of sources that were made by the same tokenizer; see ``RowIndex``."""
        tokenizer = sources[0].data.manifest.tokenizer
        return cls(
            RowIndex.of(sources, seed, window),
            length,
            tuple(tokenizer.prefix),
            tuple(tokenizer.suffix),
            _padding_id(tokenizer.special),
            np.array([source.digest63 for source in sources], np.int64),
        )

    @property
    def sources(self) -> tuple[PackedSource, ...]:
        """In the recipe's order."""
        return self.index.sources

    @property
    def tokenizer(self) -> TokenizerRecord:
        """What made the tokens."""
        return self.sources[0].data.manifest.tokenizer

    def require_word_starts(self, asked_by: str) -> None:
        """DataError unless every source knows where words begin; ``asked_by`` names who asks."""
        for source in self.sources:
            if "0" not in source.data.manifest.annotations:
                msg = (
                    f"{source.data.folder}: {asked_by} needs to know where words begin, but these "
                    "shards have no annotations; adopt them with --annotate, prepare the corpus, "
                    "or choose masking dynamic"
                )
                raise DataError(msg)

    def read(self, picks: Picks) -> Rows:
        """The rows of the picks, in their order; their annotations only if somebody asks."""
        keys = RowKeys(picks.source, self.digests.take(picks.source), picks.sample, picks.epoch)
        if not len(picks.sample):
            return self._none(keys)
        found = self.index.find(picks)
        gathered = self._tokens(picks, found)
        layout = self._layout(found)
        self._put(gathered, layout, (self.prefix, self.suffix, self.padding))
        tokens = gathered.values.reshape(-1, self.length)
        return Rows(tokens, keys, layout, partial(self._annotations, picks), found.labels)

    def _annotations(self, picks: Picks, part: slice) -> NDArray[np.uint8]:
        own = Picks(picks.source[part], picks.epoch[part], picks.sample[part])
        found = self.index.find(own)
        shards = [self._stored_annotations(shard) for shard in found.shards]
        gathered = gather(found.stretches, shards, np.dtype(np.uint8))
        nothing = (0,) * len(self.prefix), (0,) * len(self.suffix), 0
        self._put(gathered, self._layout(found), nothing)
        return gathered.values.reshape(-1, self.length)

    def _tokens(self, picks: Picks, found: Found) -> Gathered:
        shards = [self._stored_tokens(shard) for shard in found.shards]
        dtypes = [self._dtype(source) for source in range(len(self.sources))]
        if len(set(dtypes)) == 1:
            return gather(found.stretches, shards, dtypes[0])
        return self._mixed(picks, found, shards, dtypes)

    def _mixed(
        self, picks: Picks, found: Found, shards: list[Stored], dtypes: list[np.dtype[Any]]
    ) -> Gathered:
        """Tokens of sources that keep them in different dtypes, in one that holds all."""
        counts = np.diff(found.bounds)
        sizes = found.stretches["size"].astype(np.int64)
        ends = np.cumsum(sizes)
        values = np.empty((len(counts), self.length), np.result_type(*dtypes))
        for dtype in set(dtypes):
            rows = np.isin(picks.source, [n for n, each in enumerate(dtypes) if each == dtype])
            if rows.any():
                made = gather(found.stretches[np.repeat(rows, counts)], shards, dtype)
                values[rows] = made.values.reshape(-1, self.length)
        return Gathered(values.reshape(-1), ends - sizes)

    def _layout(self, found: Found) -> PieceLayout:
        sizes = found.stretches["size"] - (found.stretches["padding"] & (EDGE - 1))
        return PieceLayout(
            self.length,
            found.bounds,
            sizes.astype(np.int64),
            found.joined,
            len(self.prefix),
            len(self.suffix),
        )

    def _put(
        self,
        gathered: Gathered,
        layout: PieceLayout,
        ids: tuple[Sequence[int], Sequence[int], int],
    ) -> None:
        """Write prefix, suffix and padding over what was copied in their places."""
        places = special_places(layout, gathered.begins)
        before, after, padding = ids
        for each, value in zip(
            (*places.before, *places.after, places.padding), (*before, *after, padding), strict=True
        ):
            gathered.values[each] = value

    def _dtype(self, source: int) -> np.dtype[Any]:
        return self.sources[source].data.shards[0].index.dtype

    def _stored_tokens(self, shard: FoundShard) -> Stored:
        data = self.sources[shard.source].data
        whole = data.shard_tokens(shard.shard) if data.mapped else None
        return Stored(shard.size, shard.first_window, whole, partial(data.gather, shard.shard))

    def _stored_annotations(self, shard: FoundShard) -> Stored:
        data = self.sources[shard.source].data
        whole = data.shard_annotations(shard.shard) if data.mapped else None
        read = partial(data.gather_annotations, shard.shard)
        return Stored(shard.size, shard.first_window, whole, read)

    def _none(self, keys: RowKeys) -> Rows:
        nothing = np.zeros(0, np.int64)
        layout = PieceLayout(
            self.length, np.zeros(1, np.int64), nothing, None, len(self.prefix), len(self.suffix)
        )
        tokens = np.zeros((0, self.length), self._dtype(0))
        return Rows(tokens, keys, layout, np.zeros((0, self.length), np.uint8))


def _padding_id(special: Mapping[str, int]) -> int:
    return special.get("pad", special.get("eos", 0))
