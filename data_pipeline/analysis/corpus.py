"""Tokens, words and pairs of neighbours of a shard folder, counted a stretch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.counts import Counts, merge
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset

STRETCH_TOKENS = 1 << 22
MERGED_AT_ONCE = 8
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """What a corpus, or every other document of it, holds.

    Attributes:
        documents: number of documents.
        tokens: by id.
        pairs: of neighbours in a document: first id * 2**32 + second.
        words: by a hash of their tokens; seen first at a token of the data set.
    """

    documents: int
    tokens: Counts
    pairs: Counts
    words: Counts


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive documents of one shard.

    Attributes:
        place: of its first token in the data set.
        number: of its first document in the data set.
        tokens: [T].
        annotations: uint8 [T].
        starts: int64 [documents], first token of each, in the stretch.
    """

    place: int
    number: int
    tokens: NDArray[Any]
    annotations: NDArray[np.uint8]
    starts: NDArray[np.int64]


def count_halves(
    data: ShardedDataset, stretch: int = STRETCH_TOKENS
) -> tuple[CorpusCounts, CorpusCounts]:
    """Counts of the documents with even and with odd numbers.

    Args:
        data: the corpus.
        stretch: about so many tokens are looked at at once.
    """
    found: tuple[list[CorpusCounts], list[CorpusCounts]] = ([_nothing()], [_nothing()])
    for part in _stretches(data, stretch):
        document = np.repeat(
            np.arange(len(part.starts)) + part.number,
            np.diff(np.append(part.starts, len(part.tokens))),
        )
        for half in (0, 1):
            found[half].append(_count(part, document, half))
            if len(found[half]) == MERGED_AT_ONCE:
                found[half][:] = [merge_corpora(found[half])]
    return merge_corpora(found[0]), merge_corpora(found[1])


def merge_corpora(parts: list[CorpusCounts]) -> CorpusCounts:
    """Several parts of a corpus together."""
    return CorpusCounts(
        sum(part.documents for part in parts),
        merge([part.tokens for part in parts]),
        merge([part.pairs for part in parts]),
        merge([part.words for part in parts]),
    )


def word_tokens(data: ShardedDataset, place: int) -> list[int]:
    """The ids of the word whose first token is at a place of the data set."""
    ends = np.cumsum([shard.record.tokens for shard in data.shards])
    number = int(np.searchsorted(ends, place, "right"))
    shard = data.shards[number]
    place -= int(ends[number]) - shard.record.tokens
    sequence = int(np.searchsorted(shard.index.starts, place, "right")) - 1
    stop = int(shard.index.starts[sequence] + shard.index.lengths[sequence])
    begins = np.flatnonzero(data.shard_annotations(number)[place + 1 : stop] & WORD_START)
    end = place + 1 + int(begins[0]) if begins.size else stop
    ids: list[int] = data.shard_tokens(number)[place:end].tolist()
    return ids


def _stretches(data: ShardedDataset, size: int) -> Iterator[_Stretch]:
    place = 0
    for number, shard in enumerate(data.shards):
        tokens, annotations = data.shard_tokens(number), data.shard_annotations(number)
        starts = shard.index.starts
        cuts = np.searchsorted(starts, np.arange(0, len(tokens), size))
        bounds = np.unique(np.append(cuts, len(starts))).tolist()
        for first, last in pairwise(bounds):
            begin = int(starts[first])
            stop = int(starts[last]) if last < len(starts) else len(tokens)
            yield _Stretch(
                place + begin,
                shard.first + first,
                tokens[begin:stop],
                annotations[begin:stop],
                starts[first:last] - begin,
            )
        place += len(tokens)


def _count(part: _Stretch, document: NDArray[np.int64], half: int) -> CorpusCounts:
    own = document % 2 == half
    tokens = part.tokens.astype(np.uint64)
    paired = own[1:] & (document[1:] == document[:-1])
    begins_word = (part.annotations & WORD_START).astype(np.bool_)
    begins_word[part.starts] = True
    word = np.flatnonzero(begins_word)
    hashes = _word_hashes(tokens, word)
    kept = own[word]
    places = np.arange(len(tokens)) + part.place
    pairs = (tokens[:-1] << np.uint64(32)) | tokens[1:]
    return CorpusCounts(
        int(np.count_nonzero(own[part.starts])),
        Counts.of(tokens[own], places[own]),
        Counts.of(pairs[paired], places[:-1][paired]),
        Counts.of(hashes[kept], places[word[kept]]),
    )


def _word_hashes(tokens: NDArray[np.uint64], begins: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of each word's tokens in their order, uint64 [words]."""
    sizes = np.diff(np.append(begins, len(tokens)))
    place = (np.arange(len(tokens)) - np.repeat(begins, sizes)).astype(np.uint64)
    mixed = ((place << np.uint64(40)) + tokens + np.uint64(1)) * _MULTIPLIER
    mixed ^= mixed >> _SHIFT
    mixed *= _MULTIPLIER
    mixed ^= mixed >> _SHIFT
    return np.add.reduceat(mixed, begins) if begins.size else mixed[:0]


def _nothing() -> CorpusCounts:
    empty = Counts(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return CorpusCounts(0, empty, empty, empty)
