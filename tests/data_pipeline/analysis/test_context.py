"""A planted change of sense is found; the same distribution gives nothing above the floor."""

import numpy as np
import pytest

from data_pipeline.analysis.context import choose, collect, neighbours_that_differ, shift
from data_pipeline.analysis.corpus import merge_corpora
from data_pipeline.analysis.settings import Context
from data_pipeline.analysis.vocabulary import Vocabulary
from tests.data_pipeline.analysis import corpora

BANK, RIVER, MONEY = 50, range(200, 220), range(300, 320)
SETTINGS = Context(window=3, words=40, occurrences=80, least=20)


def documents(seed: int, sense: range, number: int = 900):
    """Random words; wherever BANK stands, words of one sense are around it."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        words = rng.integers(5, 90, 24)
        words[words == BANK] = 51
        at = rng.integers(3, 20)
        words[at - 2 : at + 3] = rng.choice(list(sense), 5)
        words[at] = BANK
        yield words.tolist()


def measure(readers, settings=SETTINGS):
    halves = [corpora.counted(reader) for reader in readers]
    speller = corpora.speller(readers)
    vocabulary = Vocabulary.of([merge_corpora(list(one)).words for one in halves], 500)
    words = choose(settings, *halves, speller)
    found = [
        collect(reader, own, words, vocabulary, settings, stretch=700)
        for reader, own in zip(readers, halves, strict=True)
    ]
    return shift(*found, words, np.ones(len(words)), settings), found, vocabulary, speller


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moved")
    return measure(
        [
            corpora.write_words(folder / "a", documents(1, RIVER)),
            corpora.write_words(folder / "b", documents(2, MONEY)),
        ]
    )


def test_the_word_of_another_sense_shifts_most(moved):
    found, _, _, speller = moved
    names = [speller.spell(key) for key in found.words.tolist()]
    ranked = np.argsort(-found.excess)
    assert len(names) == 40
    assert names[ranked[0]] == f"w{BANK}"
    assert found.excess[ranked[0]] > 0.3
    # Its floor is that of halves of one corpus: far below what lies between the corpora.
    assert found.within[ranked[0]] < 0.5 * found.across[ranked[0]]
    assert found.excess[ranked[1]] < 0.1


def test_its_neighbours_are_named(moved):
    found, sides, vocabulary, speller = moved
    word = found.words[np.argmax(found.excess)]
    here, there = neighbours_that_differ(*sides, word, vocabulary, speller)
    assert len(here) == len(there) == 5
    assert {int(name[1:]) for name in here} <= set(RIVER)
    assert {int(name[1:]) for name in there} <= set(MONEY)


def test_one_distribution_gives_about_nothing_though_the_sizes_differ(tmp_path):
    readers = [
        corpora.write_words(tmp_path / "a", documents(3, RIVER, 900)),
        corpora.write_words(tmp_path / "b", documents(4, RIVER, 400)),
    ]
    found, *_ = measure(readers)
    assert found.mean(found.across) > 0.05  # samples differ,
    assert abs(found.mean(found.excess)) < 0.005  # but not by more than halves do
    assert np.abs(found.excess).max() < 0.06


def test_signs_and_rare_words_are_not_compared(moved, tmp_path):
    found, _, _, speller = moved
    assert not any(speller.spell(key) == "." for key in found.words.tolist())
    rare = [[10, 11, 12]] * 60 + [[13, 14]] * 3
    readers = [corpora.write_words(tmp_path / name, rare) for name in "ab"]
    found, *_ = measure(readers)
    assert {readers[0].data.folder.name for _ in found.words} == {"a"}
    assert len(found.words) == 3
    # Always the same neighbours: nothing to tell apart.
    assert found.mean(found.across) == found.mean(found.within) == 0


def test_pairs_without_a_frequent_word_say_so(tmp_path):
    readers = [corpora.write_words(tmp_path / name, [[10, 11]] * 4) for name in "ab"]
    found, *_ = measure(readers)
    assert found.mean(found.excess) is None


def test_neighbours_stay_in_their_document(tmp_path):
    reader = corpora.write_words(tmp_path / "a", [[20, 10, 30], [40, 10], [10]] * 4)
    settings = Context(window=2, words=10, occurrences=50, least=1)
    halves = corpora.counted(reader)
    vocabulary = Vocabulary.of([merge_corpora(list(halves)).words], 3)
    words = choose(settings, halves, halves, corpora.speller([reader]))
    both = collect(reader, halves, words, vocabulary, settings)
    names = {int(key): n for n, key in enumerate(vocabulary.keys)}
    speller = corpora.speller([reader])
    seen = {speller.spell(key): n for key, n in names.items()}
    ten = next(key for key in words if speller.spell(int(key)) == "w10")
    rows = {tuple(row) for half in both for row in half.of(ten).tolist()}
    known = [seen.get(name, len(vocabulary)) for name in ("w20", "w30", "w40")]
    assert len(vocabulary) in known  # of four words three have names
    w20, w30, w40 = known
    assert rows == {(-1, w20, w30, -1), (-1, w40, -1, -1), (-1, -1, -1, -1)}
    assert sum(len(half.of(ten)) for half in both) == 12
