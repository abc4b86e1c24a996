"""A corpus read for counting: whole documents, all or a fixed sample, a stretch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.analysis.hashing import half_of, mixed, priorities, threshold
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset

STRETCH_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Reader:
    """A corpus, and which of its documents are looked at.

    Attributes:
        data: the shards.
        seed: the sample is drawn by it.
        share: of the documents that are looked at, about; 1 for all.
    """

    data: ShardedDataset
    seed: int = 0
    share: float = 1.0

    @classmethod
    def limited(cls, data: ShardedDataset, tokens: int, seed: int) -> "Reader":
        """About so many tokens at most, in documents from everywhere; DataError without words."""
        if "0" not in data.manifest.annotations:
            msg = (
                f"{data.folder}: these shards have no word starts (they were adopted, or made "
                "without annotations), and words are what is compared here; adopt them with "
                "--annotate, or prepare the corpus from its text"
            )
            raise DataError(msg)
        return cls(data, seed, min(1.0, tokens / max(1, data.manifest.tokens)))

    def stretches(self, size: int = STRETCH_TOKENS) -> Iterator["Stretch"]:
        """The documents in order, about ``size`` tokens at a time, never across two shards."""
        place = 0
        for number, shard in enumerate(self.data.shards):
            starts, lengths = shard.index.starts, shard.index.lengths.astype(np.int64)
            kept = self._kept(np.arange(len(starts)) + shard.first)
            if not kept.size:
                place += shard.record.tokens
                continue
            # Once for all its stretches: by pread each call reads the whole shard.
            tokens, annotations = (
                self.data.shard_tokens(number),
                self.data.shard_annotations(number),
            )
            ends = np.cumsum(lengths[kept])
            cuts = np.searchsorted(ends - lengths[kept], np.arange(0, int(ends[-1]), size))
            for first, last in pairwise(np.unique(np.append(cuts, len(kept))).tolist()):
                own = kept[first:last]
                at = ranges(starts[own], lengths[own])
                yield Stretch(
                    tokens=tokens[at],
                    annotations=annotations[at],
                    starts=np.cumsum(lengths[own]) - lengths[own],
                    numbers=own + shard.first,
                    places=at + place,
                )
            place += shard.record.tokens

    def _kept(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of a shard's documents, by their place among them."""
        if self.share >= 1:
            return np.arange(len(numbers))
        return np.flatnonzero(
            priorities(self.seed, numbers, "documents counted") < threshold(self.share)
        )


@dataclass(frozen=True)
class Stretch:
    """Consecutive documents of a sample.

    Attributes:
        tokens: [T].
        annotations: uint8 [T].
        starts: int64 [documents], first token of each, in the stretch.
        numbers: int64 [documents], each one's number in the data set.
        places: int64 [T], of each token in the data set.
    """

    tokens: NDArray[Any]
    annotations: NDArray[np.uint8]
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    places: NDArray[np.int64]

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """Number of each token's document, int64 [T]."""
        return self._for_tokens(self.numbers)

    @cached_property
    def halves(self) -> NDArray[np.int64]:
        """In which half of the corpus each token's document is, int64 [T]."""
        return self._for_tokens(half_of(self.numbers))

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """First token of each word, int64 [words]; a document always begins one."""
        begins = (self.annotations & WORD_START).astype(np.bool_)
        begins[self.starts] = True
        return np.flatnonzero(begins)

    @cached_property
    def words(self) -> NDArray[np.uint64]:
        """A hash of each word's tokens in their order, uint64 [words]."""
        begins, tokens = self.begins, self.tokens.astype(np.uint64)
        sizes = np.diff(np.append(begins, len(tokens)))
        place = (np.arange(len(tokens)) - np.repeat(begins, sizes)).astype(np.uint64)
        hashes = mixed((place << np.uint64(40)) + tokens + np.uint64(1))
        return np.add.reduceat(hashes, begins) if begins.size else hashes[:0]

    def _for_tokens(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """A value of each document, for each of its tokens."""
        return np.repeat(values, np.diff(np.append(self.starts, len(self.tokens))))


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[0], starts[0] + 1, ...`` for each length, one behind the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    found: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return found
