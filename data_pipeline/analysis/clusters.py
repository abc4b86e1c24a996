"""What corpora are about: their documents in clusters, how evenly, and who covers whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.hashing import priorities
from data_pipeline.analysis.settings import Clusters
from data_pipeline.analysis.stretches import Reader, Stretch, ranges
from data_pipeline.analysis.vocabulary import Speller, Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

READ_AT_ONCE = 256
LONGEST_READ = 1 << 16
DOCUMENTS_A_CLUSTER = 10
COVERED_FROM = 0.1
"""A cluster is covered by a corpus that gives it a tenth of the share that the other gives it."""


@dataclass(frozen=True, slots=True)
class Clustered:
    """Documents of several corpora in clusters, the largest first.

    Attributes:
        documents: how many of each corpus were clustered.
        shares: fp64 [corpora, clusters], of each corpus's documents; rows sum to 1.
        weights: fp64 [clusters, V], what makes a cluster's words more than the others'.
    """

    documents: Sequence[int]
    shares: NDArray[np.float64]
    weights: NDArray[np.float64]

    def balance(self, corpus: int) -> float | None:
        """Entropy over its largest possible value: 1 for the same share everywhere, 0 for one."""
        shares = self.shares[corpus]
        if len(shares) < 2:
            return None
        seen = shares[shares > 0]
        return round(float(-(seen * np.log(seen)).sum() / np.log(len(shares))) + 0.0, 6)

    def covered(self, corpus: int, by: int) -> float:
        """Share of a corpus's documents in clusters that the other corpus covers."""
        own, others = self.shares[corpus], self.shares[by]
        return round(float(own[others >= COVERED_FROM * own].sum()), 6)

    def common(self, first: int, second: int) -> float:
        """Sum over the clusters of the smaller of both shares: 1 where they are the same."""
        return round(float(np.minimum(self.shares[first], self.shares[second]).sum()), 6)

    def describe(
        self, names: Sequence[str], vocabulary: Vocabulary, speller: Speller, words: int
    ) -> list[Mapping[str, Any]]:
        """Each cluster's words, and its share of each corpus."""
        return [
            {
                "words": _top_words(weights, vocabulary, speller, words),
                "shares": dict(zip(names, shares.round(6).tolist(), strict=True)),
            }
            for weights, shares in zip(self.weights, self.shares.T, strict=True)
        ]


def cluster(
    readers: Sequence[Reader], vocabulary: Vocabulary, settings: Clusters, seed: int
) -> Clustered:
    """Cluster samples of several corpora together, each corpus with the same weight.

    One thread, so that sums are made in one order and the outcome is the same everywhere.
    """
    from scipy.sparse import vstack
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # scikit-learn's own

    counted = [_counted(reader, vocabulary, settings.documents) for reader in readers]
    sizes = [matrix.shape[0] for matrix in counted]
    corpus = np.repeat(np.arange(len(sizes)), sizes)
    number = max(1, min(settings.number, len(corpus) // DOCUMENTS_A_CLUSTER))
    with threadpool_limits(limits=1):
        tfidf = TfidfTransformer(sublinear_tf=True).fit_transform(vstack(counted))
        components = min(settings.components, *tfidf.shape)
        left, strength, _ = randomized_svd(tfidf, components, random_state=seed % (1 << 32))
        means = MiniBatchKMeans(number, random_state=seed % (1 << 32), n_init=5, batch_size=2048)
        labels = means.fit_predict(
            normalize(left * strength),
            sample_weight=(len(corpus) / len(sizes) / np.array(sizes))[corpus],
        )
    shares = np.zeros((len(sizes), number))
    np.add.at(shares, (corpus, labels), 1)
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-shares.sum(axis=0), kind="stable")
    return Clustered(sizes, shares[:, order], _weights(tfidf, labels, order))


def _weights(
    tfidf: "csr_matrix", labels: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean TF-IDF in each cluster less that of all documents, fp64 [clusters, V]."""
    overall = np.asarray(tfidf.mean(axis=0)).ravel()
    rows = [
        np.asarray(tfidf[labels == label].mean(axis=0)).ravel() - overall
        if (labels == label).any()
        else np.zeros(tfidf.shape[1])
        for label in order
    ]
    return np.stack(rows)


def _counted(reader: Reader, vocabulary: Vocabulary, documents: int) -> "csr_matrix":
    """How often each word of the vocabulary stands in each document of a sample: [n, V]."""
    from scipy.sparse import csr_matrix, vstack

    known = len(vocabulary)
    blocks = []
    for part in _sampled(reader, documents):
        row = np.repeat(
            np.arange(len(part.starts)),
            np.diff(np.searchsorted(part.begins, np.append(part.starts, len(part.tokens)))),
        )
        column = vocabulary.numbers(part.words)
        inside = column < known
        ones = np.ones(int(inside.sum()), np.float64)
        shape = (len(part.starts), known)
        blocks.append(csr_matrix((ones, (row[inside], column[inside])), shape=shape))
    return vstack(blocks, format="csr")


def _sampled(reader: Reader, documents: int) -> Iterator[Stretch]:
    """A fixed random sample of the documents, the beginnings of very long ones."""
    data = reader.data
    rank = priorities(reader.seed, np.arange(len(data)), "documents clustered")
    chosen = np.sort(np.argsort(rank, kind="stable")[:documents])
    for first in range(0, len(chosen), READ_AT_ONCE):
        numbers = chosen[first : first + READ_AT_ONCE]
        lengths = np.minimum(data.lengths[numbers], LONGEST_READ).astype(np.int64)
        pieces = zip(numbers.tolist(), lengths.tolist(), strict=True)
        tokens, annotations = zip(
            *((data.tokens(n)[:size], data.annotations(n)[:size]) for n, size in pieces),
            strict=True,
        )
        yield Stretch(
            tokens=np.concatenate(tokens),
            annotations=np.concatenate(annotations),
            starts=np.cumsum(lengths) - lengths,
            numbers=numbers,
            places=ranges(np.zeros_like(lengths), lengths),
        )


def _top_words(
    weights: NDArray[np.float64], vocabulary: Vocabulary, speller: Speller, words: int
) -> list[str]:
    found: list[str] = []
    for at in (-weights).argsort(kind="stable").tolist():
        if len(found) == words or weights[at] <= 0:
            break
        key = int(vocabulary.keys[at])
        if speller.is_word(key):
            found.append(speller.spell(key))
    return found
