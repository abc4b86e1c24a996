"""Rows of open shards: what the index finds is copied, and special ids are put in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.rows import PieceLayout, RowKeys, Rows, SpecialPlaces
from data_pipeline.shards import TokenizerRecord
from data_pipeline.streaming.gather import JOINED, PADDING, WINDOW, Gathered, Stored, gather
from data_pipeline.streaming.lookup import Found, RowIndex, ShardPlace
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
        dtypes: those that the sources keep tokens in, each once.
    """

    index: RowIndex
    length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    padding: int
    digests: NDArray[np.int64]
    dtypes: tuple[np.dtype[Any], ...]

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
            tuple(dict.fromkeys(source.data.shards[0].index.dtype for source in sources)),
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
        if not len(picks.sample):
            return self._none(picks)
        return self.fill(self.index.find(picks))

    def fill(self, found: Found) -> Rows:
        """The rows that the index found."""
        gathered = self._tokens(found)
        layout = self._layout(found, gathered)
        _put(gathered.values, layout.places(), (self.prefix, self.suffix, self.padding))
        # Parts of one stretch are handed out to several readers.
        gathered.values.flags.writeable = False
        return Rows(
            gathered.values.reshape(-1, self.length),
            self._keys(found.picks),
            layout,
            partial(self._annotations, found),
            found.labels,
        )

    def _annotations(self, found: Found, part: slice) -> NDArray[np.uint8]:
        own = found[part]
        shards = [self._stored_annotations(place) for place in self.index.shards_of(own)]
        gathered = gather(own.stretches, shards, np.dtype(np.uint8))
        nothing = (0,) * len(self.prefix), (0,) * len(self.suffix), 0
        _put(gathered.values, self._layout(own, gathered).places(), nothing)
        return gathered.values.reshape(-1, self.length)

    def _tokens(self, found: Found) -> Gathered:
        shards = [self._stored_tokens(place) for place in self.index.shards_of(found)]
        if len(self.dtypes) == 1:
            return gather(found.stretches, shards, self.dtypes[0])
        return self._mixed(found, shards)

    def _mixed(self, found: Found, shards: list[Stored]) -> Gathered:
        """Tokens of sources that keep them in different dtypes, in one that holds all."""
        counts = np.diff(found.bounds)
        values = np.empty((len(found), self.length), np.result_type(*self.dtypes))
        for dtype in self.dtypes:
            own = [self._dtype(source) == dtype for source in range(len(self.sources))]
            rows = np.array(own)[found.picks.source]
            if rows.any():
                some = found.stretches[np.repeat(rows, counts)]
                values[rows] = gather(some, shards, dtype).values.reshape(-1, self.length)
        ends = np.append(0, np.cumsum(found.stretches["size"], dtype=np.int64))
        return Gathered(values.reshape(-1), ends)

    def _layout(self, found: Found, gathered: Gathered) -> PieceLayout:
        padding = found.stretches["padding"]
        lasts = found.bounds[1:] - 1
        ends = gathered.ends[1:].copy()
        ends[lasts] -= padding[lasts] & PADDING
        joined = None if found.labels is None else (padding & JOINED) > 0
        return PieceLayout(
            self.length,
            found.bounds,
            gathered.ends[:-1],
            ends,
            joined,
            len(self.prefix),
            len(self.suffix),
        )

    def _keys(self, picks: Picks) -> RowKeys:
        return RowKeys(picks.source, self.digests.take(picks.source), picks.sample, picks.epoch)

    def _dtype(self, source: int) -> np.dtype[Any]:
        return self.sources[source].data.shards[0].index.dtype

    def _stored_tokens(self, place: ShardPlace) -> Stored:
        data = self.sources[place.source].data
        whole = data.shard_tokens(place.shard) if data.mapped else None
        return _stored(place, whole, partial(data.gather, place.shard))

    def _stored_annotations(self, place: ShardPlace) -> Stored:
        data = self.sources[place.source].data
        whole = data.shard_annotations(place.shard) if data.mapped else None
        return _stored(place, whole, partial(data.gather_annotations, place.shard))

    def _none(self, picks: Picks) -> Rows:
        nothing = np.zeros(0, np.int64)
        around = len(self.prefix), len(self.suffix)
        layout = PieceLayout(self.length, np.zeros(1, np.int64), nothing, nothing, None, *around)
        tokens = np.zeros((0, self.length), self.dtypes[0])
        return Rows(tokens, self._keys(picks), layout, np.zeros((0, self.length), np.uint8))


def _stored(
    place: ShardPlace,
    whole: NDArray[Any] | None,
    read: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]],
) -> Stored:
    if whole is not None and len(whole) != place.size.tokens:
        msg = f"{place.size.name}: {len(whole)} tokens, expected {place.size.tokens}"
        raise DataError(msg)
    return Stored(place.size, whole, read)


def _put(
    values: NDArray[Any], places: SpecialPlaces, ids: tuple[Sequence[int], Sequence[int], int]
) -> None:
    """Write ids before and after pieces and for padding over what was copied in their places."""
    before, after, padding = ids
    every = (*places.before, *places.after, places.padding)
    for each, value in zip(every, (*before, *after, padding), strict=True):
        values[each] = value


def _padding_id(special: Mapping[str, int]) -> int:
    return special.get("pad", special.get("eos", 0))
