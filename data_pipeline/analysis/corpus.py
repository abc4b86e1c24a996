"""Tokens, their n-grams and words of a corpus, counted in bounded memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.counts import Counts, merge
from data_pipeline.analysis.hashing import half_of, mixed
from data_pipeline.analysis.stretches import STRETCH_TOKENS, Reader, Stretch
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset

MERGED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """What a corpus, or half of its documents, holds.

    Attributes:
        documents: number of documents.
        ngrams: counts of 1, 2, ... neighbouring tokens of a document. Tokens by id, pairs by
            first id * 2**32 + second, longer ones by a hash.
        words: by a hash of their tokens; seen first at a token of the data set.
    """

    documents: int
    ngrams: tuple[Counts, ...]
    words: Counts

    @property
    def tokens(self) -> Counts:
        """By id."""
        return self.ngrams[0]


def count_halves(
    reader: Reader, ngrams: int, stretch: int = STRETCH_TOKENS
) -> tuple[CorpusCounts, CorpusCounts]:
    """Counts of both halves of the documents.

    Args:
        reader: the corpus.
        ngrams: runs of up to so many tokens are counted.
        stretch: about so many tokens are looked at at once.
    """
    empty = _nothing(ngrams)
    found: tuple[list[CorpusCounts], list[CorpusCounts]] = ([empty], [empty])
    for part in reader.stretches(stretch):
        keys = [_ngram_keys(part.tokens, n) for n in range(1, ngrams + 1)]
        for half in (0, 1):
            found[half].append(_count(part, keys, half))
            if len(found[half]) == MERGED_AT_ONCE:
                found[half][:] = [merge_corpora(found[half])]
    return merge_corpora(found[0]), merge_corpora(found[1])


def merge_corpora(parts: list[CorpusCounts]) -> CorpusCounts:
    """Several parts of a corpus together."""
    by_length = zip(*(part.ngrams for part in parts), strict=True)
    return CorpusCounts(
        sum(part.documents for part in parts),
        tuple(merge(counts) for counts in by_length),
        merge([part.words for part in parts]),
    )


def word_tokens(data: ShardedDataset, place: int) -> list[int]:
    """The ids of the word whose first token is at a place of the data set."""
    ends = np.cumsum([shard.record.tokens for shard in data.shards])
    number = int(np.searchsorted(ends, place, "right"))
    shard = data.shards[number]
    place -= int(ends[number]) - shard.record.tokens
    sequence = int(np.searchsorted(shard.index.starts, place, "right")) - 1
    place -= int(shard.index.starts[sequence])
    tokens = data.tokens(shard.first + sequence)
    begins = np.flatnonzero(data.annotations(shard.first + sequence)[place + 1 :] & WORD_START)
    end = place + 1 + int(begins[0]) if begins.size else len(tokens)
    ids: list[int] = tokens[place:end].tolist()
    return ids


def _count(part: Stretch, keys: list[NDArray[np.uint64]], half: int) -> CorpusCounts:
    document = part.documents
    own = part.halves == half
    ngrams = []
    for n, of_length in enumerate(keys, 1):
        size = len(of_length)
        kept = own[:size] & (document[:size] == document[n - 1 :])
        ngrams.append(Counts.of(of_length[kept], part.places[:size][kept]))
    word_kept = own[part.begins]
    return CorpusCounts(
        int(np.count_nonzero(half_of(part.numbers) == half)),
        tuple(ngrams),
        Counts.of(part.words[word_kept], part.places[part.begins[word_kept]]),
    )


def _ngram_keys(ids: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
    """A key of the n tokens from each place on, uint64 [max(0, T - n + 1)]."""
    tokens = ids.astype(np.uint64)
    size = max(0, len(tokens) - n + 1)
    keys = tokens[:size]
    if n > 1:
        keys = (keys << np.uint64(32)) | tokens[1 : size + 1]
    for distance in range(2, n):
        keys = mixed(keys) + tokens[distance : size + distance]
    return keys


def _nothing(ngrams: int) -> CorpusCounts:
    empty = Counts(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return CorpusCounts(0, (empty,) * ngrams, empty)
