"""Cosine between TF-IDF vectors: like the target's centre, or like its nearest texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from data_pipeline.selection.method import Method, Scorer
from data_pipeline.selection.words import hashed, terms

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

AT_ONCE = 256


class TfidfSimilarity(Method):
    """TF-IDF over hashed words (characters and their pairs where words are not spaced).

    Attributes:
        neighbours: null: cosine to the mean of the target's vectors; k: mean cosine to the k
            nearest of them, for a target of several topics.
        features: words are hashed to so many.
    """

    name: Literal["tfidf"] = "tfidf"
    neighbours: int | None = Field(default=None, ge=1)
    features: int = Field(default=1 << 18, ge=2)

    def fit(self, target: Sequence[str], background: Sequence[str], seed: int) -> Scorer:
        """Document frequencies are of the target and the background together."""
        del seed
        counts = [_counts(texts, self.features) for texts in (target, background)]
        seen = sum(np.bincount(one.indices, minlength=self.features) for one in counts)
        # As scikit-learn smooths them: a word that nobody has would still have a weight.
        weights = np.log((1 + len(target) + len(background)) / (1 + seen)) + 1
        vectors = _vectors(counts[0], weights)
        if not vectors.nnz:
            msg = "select: the target has no words, only signs or blanks; give it texts"
            raise DataError(msg)
        if self.neighbours is None:
            centre = np.asarray(vectors.mean(axis=0)).ravel()
            return Centre(weights, centre / np.linalg.norm(centre))
        if self.neighbours > len(target):
            msg = (
                f"select: method.neighbours is {self.neighbours}, but the target has "
                f"{len(target)} texts; lower it"
            )
            raise DataError(msg)
        return Nearest(weights, vectors, self.neighbours)


@dataclass(frozen=True, slots=True)
class Centre:
    """Cosine to one vector.

    Attributes:
        weights: fp64 [features], inverse document frequencies.
        centre: fp64 [features], of length 1.
    """

    weights: NDArray[np.float64]
    centre: NDArray[np.float64]

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return _by_blocks(texts, self.weights, lambda vectors: vectors @ self.centre)


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
    for first in range(0, len(texts), AT_ONCE):
        counts = _counts(texts[first : first + AT_ONCE], len(weights))
        found = judge(_vectors(counts, weights))
        scores.append(np.where(np.diff(counts.indptr) > 0, found, -np.inf))
    return np.concatenate(scores)


def _counts(texts: Sequence[str], features: int) -> "csr_matrix":
    """How often each feature stands in each text, sparse fp64 [texts, features]."""
    from scipy.sparse import csr_matrix

    found = hashed([terms(text) for text in texts])
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
