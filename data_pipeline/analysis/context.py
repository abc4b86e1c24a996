"""Context shift: the same word among other neighbours.

Of a word that is frequent in two corpora, the distributions of the words around it are compared.
Two samples of one distribution differ too, and the more the smaller they are. Therefore each corpus
is cut into halves and the same number of occurrences of the word is taken from all four: what the
halves of different corpora differ by, less what the halves of one corpus do, is 0 on average where
the word is used alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.corpus import CorpusCounts
from data_pipeline.analysis.hashing import priorities, threshold
from data_pipeline.analysis.settings import Context
from data_pipeline.analysis.stretches import STRETCH_TOKENS, Reader, Stretch, ranges
from data_pipeline.analysis.vocabulary import Speller, Vocabulary, numbers_in

MARGIN = 1.5
LISTED_NEIGHBOURS = 5
Halves = tuple[CorpusCounts, CorpusCounts]


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Where some words stand in half a corpus, in a fixed random order for each.

    Attributes:
        words: uint64 [W], hashes of the words, ascending.
        bounds: int64 [W + 1], where each word's occurrences begin.
        neighbours: int32 [occurrences, 2 * window], numbers in the vocabulary; V for a word that
            is not in it, -1 where the document ends.
    """

    words: NDArray[np.uint64]
    bounds: NDArray[np.int64]
    neighbours: NDArray[np.int32]

    def of(self, word: np.uint64) -> NDArray[np.int32]:
        """One word's occurrences."""
        at = int(self.words.searchsorted(word))
        return self.neighbours[self.bounds[at] : self.bounds[at + 1]]


def choose(
    settings: Context, first: Halves, second: Halves, speller: Speller
) -> NDArray[np.uint64]:
    """Hashes of the words, not signs, to be compared in a pair of corpora, ascending."""
    sides = [half.words for half in (*first, *second)]
    keys = sides[0].keys
    for side in sides:
        keys = np.intersect1d(keys, side.keys[side.counts >= settings.least], assume_unique=True)
    shares = np.zeros(len(keys))
    for side in sides:
        shares += side.counts[side.keys.searchsorted(keys)] / max(1, side.total)
    chosen: list[int] = []
    for key in keys[np.lexsort((keys, -shares))].tolist():
        if len(chosen) == settings.words:
            break
        if speller.is_word(key):
            chosen.append(key)
    return np.array(sorted(chosen), np.uint64)


def collect(
    reader: Reader,
    halves: Halves,
    words: NDArray[np.uint64],
    vocabulary: Vocabulary,
    settings: Context,
    stretch: int = STRETCH_TOKENS,
) -> tuple[Occurrences, Occurrences]:
    """A fixed random sample of the occurrences of words in both halves of a corpus.

    Args:
        reader: the corpus.
        halves: its counts.
        words: uint64 [W], hashes, ascending.
        vocabulary: the neighbours' names.
        settings: the window, and how many occurrences of each word are taken.
        stretch: about so many tokens are looked at at once.
    """
    limits = np.stack([_limits(half, words, settings.occurrences) for half in halves])
    rows: tuple[list[_Rows], list[_Rows]] = ([], [])
    for part in reader.stretches(stretch):
        number = numbers_in(words, part.words)
        at = np.flatnonzero(number < len(words))
        half = part.halves[part.begins[at]]
        rank = priorities(reader.seed, part.places[part.begins[at]], "occurrences")
        taken = rank < limits[half, number[at]]
        at, half, rank = at[taken], half[taken], rank[taken]
        around = _around(part, at, vocabulary.numbers(part.words), settings.window)
        for side in (0, 1):
            own = half == side
            rows[side].append(_Rows(number[at[own]], rank[own], around[own]))
    first, second = (_sorted(side, words, settings) for side in rows)
    return first, second


def shift(
    first: tuple[Occurrences, Occurrences],
    second: tuple[Occurrences, Occurrences],
    words: NDArray[np.uint64],
    weights: NDArray[np.float64],
    settings: Context,
) -> "Shift":
    """Compare the words of a pair of corpora.

    Args:
        first: both halves of one corpus.
        second: both halves of the other.
        words: uint64 [W], hashes; each is in all four halves.
        weights: fp64 [W], how frequent each is.
        settings: as they were when the occurrences were collected.
    """
    divergences = np.zeros((len(words), 2))
    for row, word in zip(divergences, words, strict=True):
        found = [half.of(word) for half in (*first, *second)]
        number = min(settings.occurrences, *map(len, found))
        row[:] = _divergences([half[:number] for half in found])
    return Shift(words, weights / max(weights.sum(), 1e-300), *divergences.T)


@dataclass(frozen=True, slots=True)
class Shift:
    """How much the neighbours of each word differ between two corpora.

    Attributes:
        words: uint64 [W].
        weights: fp64 [W], each word's share.
        across: fp64 [W], mean divergence between a half of one corpus and one of the other, bits.
        within: fp64 [W], mean divergence between the halves of one corpus: the noise floor.
    """

    words: NDArray[np.uint64]
    weights: NDArray[np.float64]
    across: NDArray[np.float64]
    within: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """What lies above the floor, fp64 [W], bits; below 0 by chance alone."""
        return self.across - self.within

    def mean(self, values: NDArray[np.float64]) -> float | None:
        """Weighted by frequency; None without words."""
        return round(float(self.weights @ values), 6) if len(values) else None


def _divergences(halves: Sequence[NDArray[np.int32]]) -> tuple[float, float]:
    """Mean divergence across the corpora, and within them, of halves (a, a, b, b)."""
    names, numbers = np.unique(
        np.concatenate([half.ravel() for half in halves]), return_inverse=True
    )
    counts = np.zeros((4, len(names)))
    stop = 0
    for row, half in zip(counts, halves, strict=True):
        start, stop = stop, stop + half.size
        row[:] = np.bincount(numbers[start:stop], minlength=len(names))
    counts = counts[:, names >= 0]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left, right = [0, 0, 1, 1, 0, 2], [2, 3, 2, 3, 1, 3]
    found = _entropy((shares[left] + shares[right]) / 2)
    entropy = _entropy(shares)
    found -= (entropy[left] + entropy[right]) / 2
    return float(found[:4].mean()), float(found[4:].mean())


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, in bits."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: NDArray[np.float64] = -(shares * logs).sum(axis=1)
    return entropy


def neighbours_that_differ(
    first: tuple[Occurrences, Occurrences],
    second: tuple[Occurrences, Occurrences],
    word: np.uint64,
    vocabulary: Vocabulary,
    speller: Speller,
) -> tuple[list[str], list[str]]:
    """Neighbours, not signs, that add most to the divergence from the one side, from the other."""
    shares = []
    for halves in (first, second):
        seen = np.concatenate([half.of(word).ravel() for half in halves])
        counts = np.bincount(
            seen[(seen >= 0) & (seen < len(vocabulary))], minlength=len(vocabulary)
        )
        shares.append(counts / max(1, counts.sum()))
    middle = (shares[0] + shares[1]) / 2
    here, there = (
        share * np.log2(np.divide(share, middle, out=np.ones_like(share), where=share > 0))
        for share in shares
    )
    return _largest(here, vocabulary, speller), _largest(there, vocabulary, speller)


def _largest(added: NDArray[np.float64], vocabulary: Vocabulary, speller: Speller) -> list[str]:
    found: list[str] = []
    for at in (-added).argsort(kind="stable").tolist():
        if len(found) == LISTED_NEIGHBOURS or added[at] <= 0:
            break
        key = int(vocabulary.keys[at])
        if speller.is_word(key):
            found.append(speller.spell(key))
    return found


def describe_shift(found: Shift, settings: Context) -> dict[str, Any]:
    """The numbers of a pair as a whole."""
    return {
        "words": len(found.words),
        "window": settings.window,
        "across": found.mean(found.across),
        "within": found.mean(found.within),
        "shift": found.mean(found.excess),
    }


@dataclass(frozen=True, slots=True)
class _Rows:
    """Occurrences found in a stretch: number of the word, rank in its sample, neighbours."""

    number: NDArray[np.int64]
    rank: NDArray[np.uint64]
    neighbours: NDArray[np.int32]


def _limits(half: CorpusCounts, words: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """Occurrences with a rank below it are enough for the sample: uint64 [W]."""
    at = numbers_in(half.words.keys, words)
    counts = np.append(half.words.counts, 1)[at]
    shares = MARGIN * most / counts
    return np.array([threshold(min(share, 1 - 2**-53)) for share in shares.tolist()], np.uint64)


def _around(
    part: Stretch, at: NDArray[np.int64], names: NDArray[np.int64], window: int
) -> NDArray[np.int32]:
    """Numbers of the words around some words, -1 outside the document, int32 [n, 2 * window]."""
    offsets = np.array([d for d in range(-window, window + 1) if d])
    document = part.documents[part.begins]
    place = at[:, None] + offsets
    inside = (place >= 0) & (place < len(document))
    place[~inside] = 0
    inside &= document[place] == document[at][:, None]
    return np.where(inside, names[place], -1).astype(np.int32)


def _sorted(rows: Sequence[_Rows], words: NDArray[np.uint64], settings: Context) -> Occurrences:
    """By word, then by rank, and no more of each than are asked for."""
    width = 2 * settings.window
    number = np.concatenate([np.zeros(0, np.int64), *(row.number for row in rows)])
    rank = np.concatenate([np.zeros(0, np.uint64), *(row.rank for row in rows)])
    neighbours = np.concatenate([np.zeros((0, width), np.int32), *(row.neighbours for row in rows)])
    order = np.lexsort((rank, number))
    sizes = np.bincount(number, minlength=len(words))
    kept = np.minimum(sizes, settings.occurrences)
    picked = order[ranges(np.cumsum(sizes) - sizes, kept)]
    return Occurrences(words, np.append(0, np.cumsum(kept)), neighbours[picked])
