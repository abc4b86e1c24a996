"""Planted topics are the clusters; a corpus of one topic is neither balanced nor covers others."""

import numpy as np
import pytest

from data_pipeline.analysis.clusters import cluster
from data_pipeline.analysis.corpus import merge_corpora
from data_pipeline.analysis.settings import Clusters
from data_pipeline.analysis.vocabulary import Vocabulary
from tests.data_pipeline.analysis import corpora

TOPICS = [range(start, start + 30) for start in (100, 200, 300, 400)]


def documents(seed: int, topics, number: int = 120):
    """Each of one topic: its words among common ones."""
    rng = np.random.default_rng(seed)
    for at in range(number):
        topic = topics[at % len(topics)]
        words = [*rng.choice(list(topic), 15), *rng.integers(5, 40, 10)]
        yield rng.permutation(words).tolist()


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topics")
    return [
        corpora.write_words(folder / "all", documents(1, TOPICS)),
        corpora.write_words(folder / "one", documents(2, TOPICS[:1])),
        corpora.write_words(folder / "two", documents(3, TOPICS[:2], 60)),
    ]


def clustered(readers, **changes):
    settings = Clusters(**({"number": 4, "documents": 200, "components": 8} | changes))
    counts = [merge_corpora(list(corpora.counted(reader))).words for reader in readers]
    vocabulary = Vocabulary.of(counts, 400)
    return cluster(readers, vocabulary, settings, seed=5), vocabulary


def test_topics_are_found_and_described(readers):
    found, vocabulary = clustered(readers)
    speller = corpora.speller(readers)
    rows = found.describe(["all", "one", "two"], vocabulary, speller, 5)
    topics = []
    for row in rows:
        numbers = [int(word[1:]) for word in row["words"]]
        (topic,) = {number // 100 for number in numbers}
        topics.append(topic)
        assert row["shares"]["all"] == 0.25
    assert sorted(topics) == [1, 2, 3, 4]
    # The largest first: topic 1 has all of one corpus, and half of another.
    assert topics[:2] == [1, 2]


def test_balance_and_coverage(readers):
    found, _ = clustered(readers)
    assert found.balance(0) == 1
    assert found.balance(1) == 0
    assert found.balance(2) == 0.5
    assert found.covered(1, by=0) == 1
    assert found.covered(0, by=1) == 0.25
    assert found.covered(0, by=2) == 0.5
    assert found.common(1, 2) == 0.5
    assert found.common(2, 1) == 0.5


def test_samples_are_limited_and_fixed(readers):
    first, _ = clustered(readers, documents=40)
    again, _ = clustered(readers, documents=40)
    assert list(first.documents) == [40, 40, 40]
    assert np.array_equal(first.shares, again.shares)


def test_few_documents_make_few_clusters(tmp_path):
    readers = [corpora.write_words(tmp_path / name, [[10, 11], [12]]) for name in "ab"]
    found, _ = clustered(readers)
    assert found.shares.tolist() == [[1], [1]]
    assert found.balance(0) is None
