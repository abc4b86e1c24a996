"""Cosine between TF-IDF vectors: towards the target's centre, or to its nearest texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from data_pipeline.selection.method import Method, Scorer
from data_pipeline.selection.words import hashed, terms

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

AT_ONCE = 256
_SPARSE = ("data", "indices", "indptr")


class TfidfSimilarity(Method):
    """TF-IDF over hashed words (characters and their pairs where words are not spaced).

    Attributes:
        neighbours: null: cosine to the mean of the target's vectors less that of the sources'
            (Rocchio, 1971), without which long texts would be like any target; k: mean cosine to
            the k nearest of the target's vectors, for a target of several topics.
        features: words are hashed to so many.
    """

    name: Literal["tfidf"] = "tfidf"
    neighbours: int | None = Field(default=None, ge=1)
    features: int = Field(default=1 << 18, ge=2)

    def fit(self, target: Sequence[str], background: Sequence[str], seed: int) -> Scorer:
        """Document frequencies are of the target and the background together."""
        del seed
        seen = np.zeros(self.features)
        for block in _blocks([*target, *background]):
            seen += np.bincount(_counts(block, self.features).indices, minlength=self.features)
        # A word of every text says next to nothing; the half keeps it above nothing at all.
        weights = np.log((1 + len(target) + len(background)) / (0.5 + seen))
        vectors = _vectors(_counts(target, self.features), weights)
        if not vectors.nnz:
            msg = "select: the target has no words, only signs or blanks; give it texts"
            raise DataError(msg)
        if self.neighbours is None:
            usual = np.zeros(self.features)
            for block in _blocks(background):
                usual += _sum(_vectors(_counts(block, self.features), weights))
            apart = _sum(vectors) / len(target) - usual / max(1, len(background))
            return Direction(weights, apart / max(float(np.linalg.norm(apart)), 1e-300))
        if self.neighbours > len(target):
            msg = (
                f"select: method.neighbours is {self.neighbours}, but the target has "
                f"{len(target)} texts; lower it"
            )
            raise DataError(msg)
        return Nearest(weights, vectors, self.neighbours)

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Scorer:
        from scipy.sparse import csr_matrix

        weights = arrays["weights"]
        if self.neighbours is None:
            return Direction(weights, arrays["direction"])
        held = tuple(arrays[f"target.{part}"] for part in _SPARSE)
        shape = (len(held[-1]) - 1, len(weights))
        return Nearest(weights, csr_matrix(held, shape=shape), self.neighbours)


@dataclass(frozen=True, slots=True)
class Direction:
    """Cosine to one direction.

    Attributes:
        weights: fp64 [features], inverse document frequencies.
        direction: fp64 [features], of length 1.
    """

    weights: NDArray[np.float64]
    direction: NDArray[np.float64]

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return _by_blocks(texts, self.weights, lambda vectors: vectors @ self.direction)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self.weights, "direction": self.direction}


@dataclass(frozen=True, slots=True)
class Nearest:
    """Mean cosine to the nearest of several vectors.

    Attributes:
        weights: fp64 [features], inverse document frequencies.
        target: sparse [texts, features], rows of length 1.
        neighbours: how many are the nearest.
    """

    weights: NDArray[np.float64]
    target: "csr_matrix"
    neighbours: int

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return _by_blocks(texts, self.weights, self._nearest)

    def arrays(self) -> dict[str, NDArray[Any]]:
        sparse = {f"target.{part}": getattr(self.target, part) for part in _SPARSE}
        return {"weights": self.weights, **sparse}

    def _nearest(self, vectors: "csr_matrix") -> NDArray[np.float64]:
        cosines = (vectors @ self.target.T).toarray()
        place = cosines.shape[1] - self.neighbours
        nearest = np.partition(cosines, place, axis=1)[:, place:]
        # Summed in one order, so that equal texts get equal scores whatever stands beside them.
        means: NDArray[np.float64] = np.sort(nearest, axis=1).mean(axis=1)
        return means


def _by_blocks(
    texts: Sequence[str],
    weights: NDArray[np.float64],
    judge: Callable[["csr_matrix"], NDArray[np.float64]],
) -> NDArray[np.float64]:
    scores = [np.zeros(0)]
    for block in _blocks(texts):
        counts = _counts(block, len(weights))
        found = judge(_vectors(counts, weights))
        scores.append(np.where(np.diff(counts.indptr) > 0, found, -np.inf))
    return np.concatenate(scores)


def _sum(vectors: "csr_matrix") -> NDArray[np.float64]:
    return np.asarray(vectors.sum(axis=0), np.float64).ravel()


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[first : first + AT_ONCE] for first in range(0, len(texts), AT_ONCE))


def _counts(texts: Sequence[str], features: int) -> "csr_matrix":
    """How often each feature stands in each text, sparse fp64 [texts, features]."""
    from scipy.sparse import csr_matrix

    found = hashed(map(terms, texts))
    cells = found.text * features + (found.words % np.uint64(features)).astype(np.int64)
    known, counts = np.unique(cells, return_counts=True)
    bounds = np.searchsorted(known, np.arange(len(texts) + 1) * features)
    shape = (len(texts), features)
    return csr_matrix((counts.astype(np.float64), known % features, bounds), shape=shape)


def _vectors(counts: "csr_matrix", weights: NDArray[np.float64]) -> "csr_matrix":
    """(1 + log count) * weight, rows of length 1 (Salton and Buckley, 1988)."""
    from scipy.sparse import csr_matrix

    values = (1 + np.log(counts.data)) * weights[counts.indices]
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    lengths = np.sqrt(np.bincount(rows, weights=values**2, minlength=counts.shape[0]))
    return csr_matrix((values / lengths[rows], counts.indices, counts.indptr), shape=counts.shape)
