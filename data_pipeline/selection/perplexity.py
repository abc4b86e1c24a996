"""Cross-entropy difference of two language models (Moore and Lewis, 2010)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from data_pipeline.analysis.hashing import mixed
from data_pipeline.selection.method import Method, Scorer
from data_pipeline.selection.words import Hashed, hashed, sums_by_text, words_and_signs

AT_ONCE = 256
UNKNOWN, BEGIN = 0, 1
FIRST_WORD = 2
_MODELS = ("target", "background.0", "background.1")


class PerplexityDifference(Method):
    """Bits a word that a model of the sources needs more than one of the target.

    Both are n-gram models with Witten and Bell's smoothing over the words of the target, made from
    about as many words: the one from the target, the other from the background. Of the latter there
    are two, from either half of the background, and a text is judged by the one that has not seen
    it: what a model has learnt by heart it finds too easy.

    Attributes:
        n: of the n-grams, of words (characters where words are not spaced).
        least: a word that the target has less often is unknown to both models.
    """

    name: Literal["perplexity_difference"] = "perplexity_difference"
    n: int = Field(default=3, ge=1, le=5)
    least: int = Field(default=2, ge=1)

    def fit(self, target: Sequence[str], background: Sequence[str], seed: int) -> Scorer:
        """Learn both models; ``background`` is in random order, and read as far as is needed."""
        del seed
        found = _all_words(target)
        known, counts = np.unique(found.words, return_counts=True)
        vocabulary = known[counts >= self.least]
        if not vocabulary.size:
            msg = (
                f"select: the target has no word {self.least} times; give more of it, or lower "
                "method.least"
            )
            raise DataError(msg)
        return DifferenceScorer(
            vocabulary,
            self.n,
            WittenBell.of(_padded(found, vocabulary, self.n), self.n),
            self._of_halves(background, vocabulary, len(found.words)),
        )

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Scorer:
        target, first, second = (WittenBell.restored(arrays, name, self.n) for name in _MODELS)
        return DifferenceScorer(arrays["vocabulary"], self.n, target, (first, second))

    def _of_halves(
        self, background: Sequence[str], vocabulary: NDArray[np.uint64], words: int
    ) -> tuple["WittenBell", "WittenBell"]:
        models = []
        for half in (0, 1):
            found = _as_many_words((text for text in background if _half(text) == half), words)
            if not len(found.words):
                msg = (
                    f"select: {len(background)} texts of the sources are too few for two models; "
                    "raise background_documents, or choose another method"
                )
                raise DataError(msg)
            models.append(WittenBell.of(_padded(found, vocabulary, self.n), self.n))
        return models[0], models[1]


@dataclass(frozen=True, slots=True)
class DifferenceScorer:
    """Two models over one vocabulary.

    Attributes:
        vocabulary: uint64 [V], hashes of the words, ascending.
        n: order of the models.
        target: the model of the target.
        background: the models of two halves of the sources.
    """

    vocabulary: NDArray[np.uint64]
    n: int
    target: "WittenBell"
    background: tuple["WittenBell", "WittenBell"]

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        scores = np.zeros(len(texts))
        halves = np.array([_half(text) for text in texts], np.int64)
        for half, unseen in ((0, self.background[1]), (1, self.background[0])):
            own = np.flatnonzero(halves == half)
            for first in range(0, len(own), AT_ONCE):
                at = own[first : first + AT_ONCE]
                scores[at] = self._block([texts[number] for number in at], unseen)
        return scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {"vocabulary": self.vocabulary}
        for name, model in zip(_MODELS, (self.target, *self.background), strict=True):
            found |= model.arrays(name)
        return found

    def _block(self, texts: Sequence[str], background: "WittenBell") -> NDArray[np.float64]:
        found = _all_words(texts)
        padded = _padded(found, self.vocabulary, self.n)
        words = len(self.vocabulary) + 1
        difference = self.target.log2(padded, words) - background.log2(padded, words)
        total = sums_by_text(difference, found.sizes)
        return np.where(found.sizes > 0, total / np.maximum(found.sizes, 1), -np.inf)


@dataclass(frozen=True, slots=True)
class _Padded:
    """Numbers of words, each text behind ``n - 1`` signs that it begins.

    Attributes:
        ids: int64 [places].
        at: int64 [words], the places of the words.
    """

    ids: NDArray[np.int64]
    at: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Order:
    """N-grams of one length, and the contexts they stand in.

    Attributes:
        grams: uint64 [n], hashes, ascending.
        counts: fp64 [n].
        contexts: uint64 [m], hashes of all but the last word, ascending.
        totals: fp64 [m], how often each was seen.
        followers: fp64 [m], how many different words were seen behind each.
    """

    grams: NDArray[np.uint64]
    counts: NDArray[np.float64]
    contexts: NDArray[np.uint64]
    totals: NDArray[np.float64]
    followers: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WittenBell:
    """An interpolated n-gram model (Witten and Bell, 1991).

    Attributes:
        orders: n-grams of 1, 2, ... words.
    """

    orders: tuple[_Order, ...]

    @classmethod
    def of(cls, padded: _Padded, n: int) -> "WittenBell":
        """Count the n-grams that end at a word."""
        return cls(tuple(_order(*keys) for keys in _keys(padded, n)))

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> "WittenBell":
        """What ``arrays`` of that name told."""
        parts = [field.name for field in fields(_Order)]
        return cls(
            tuple(
                _Order(**{part: arrays[f"{name}.{order}.{part}"] for part in parts})
                for order in range(n)
            )
        )

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """All counts, each under a name of its own that begins with ``name``."""
        return {
            f"{name}.{number}.{field.name}": getattr(order, field.name)
            for number, order in enumerate(self.orders)
            for field in fields(order)
        }

    def log2(self, padded: _Padded, words: int) -> NDArray[np.float64]:
        """Log probability of each word behind those before it, bits, fp64 [words].

        Args:
            padded: the texts.
            words: how many words there are to choose from.
        """
        probability = np.full(len(padded.at), 1 / words)
        for order, (grams, contexts) in zip(
            self.orders, _keys(padded, len(self.orders)), strict=True
        ):
            counts = _look_up(order.grams, order.counts, grams)
            totals = _look_up(order.contexts, order.totals, contexts)
            followers = _look_up(order.contexts, order.followers, contexts)
            # An unknown context has nothing to say: the shorter one decides.
            weight = np.maximum(totals + followers, 1)
            mass = np.where(totals > 0, followers, 1)
            probability = (counts + mass * probability) / weight
        bits: NDArray[np.float64] = np.log2(probability)
        return bits


def _order(grams: NDArray[np.uint64], contexts: NDArray[np.uint64]) -> _Order:
    known, first, counts = np.unique(grams, return_index=True, return_counts=True)
    names, inverse = np.unique(contexts[first], return_inverse=True)
    totals = np.bincount(inverse, weights=counts, minlength=len(names)).astype(np.float64)
    followers = np.bincount(inverse, minlength=len(names)).astype(np.float64)
    return _Order(known, counts.astype(np.float64), names, totals, followers)


def _keys(padded: _Padded, n: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Hashes of the 1, 2, ..., n-gram that ends at each word, and of all but its last word."""
    ids = padded.ids.astype(np.uint64) + np.uint64(1)
    for length in range(1, n + 1):
        context = np.zeros(len(padded.at), np.uint64)
        for back in range(length - 1, 0, -1):
            context = mixed(context) + ids[padded.at - back]
        yield mixed(context) + ids[padded.at], context


def _look_up(
    keys: NDArray[np.uint64], values: NDArray[np.float64], asked: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """The value of each key that is asked for, 0 for an unknown one."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def _padded(of: Hashed, vocabulary: NDArray[np.uint64], n: int) -> _Padded:
    at = np.minimum(np.searchsorted(vocabulary, of.words), len(vocabulary) - 1)
    numbers = np.where(vocabulary[at] == of.words, at + FIRST_WORD, UNKNOWN)
    places = np.arange(len(of.words)) + (of.text + 1) * (n - 1)
    ids = np.full(len(of.words) + len(of.sizes) * (n - 1), BEGIN)
    ids[places] = numbers
    return _Padded(ids, places)


def _all_words(texts: Sequence[str]) -> Hashed:
    return hashed(map(words_and_signs, texts))


def _as_many_words(texts: Iterable[str], words: int) -> Hashed:
    """The first texts that have so many words together."""

    def first() -> Iterator[list[str]]:
        total = 0
        for text in texts:
            if total >= words:
                return
            found = words_and_signs(text)
            total += len(found)
            yield found

    return hashed(first())


def _half(text: str) -> int:
    """0 or 1, always the same for the same text."""
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) & 1
