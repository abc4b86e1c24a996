"""The methods' arithmetic against plain implementations, and words of any language."""

import math
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from configs.errors import DataError
from data_pipeline.selection import NgramWeights, PerplexityDifference, TfidfSimilarity
from data_pipeline.selection.passes import _load, save
from data_pipeline.selection.perplexity import WittenBell, _padded
from data_pipeline.selection.words import hashed, ngrams, terms, words_and_signs

TARGET = ["the cell divides and the gene copies", "a gene in the cell , again", "cell biology"]
OTHERS = ["the car drives home", "home again and again", "the cell phone rings at home", "a car"]


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("The CELL's wall.", ["the", "cell", "'", "s", "wall", "."], ["the", "cell", "s", "wall"]),
        ("心电图ECG。", ["心", "电", "图", "ecg", "。"], ["心", "电", "图", "心电", "电图", "ecg"]),
        ("カナ x", ["カ", "ナ", "x"], ["カ", "ナ", "カナ", "x"]),
        ("ไทย", ["ไ", "ท", "ย"], ["ไ", "ท", "ย", "ไท", "ทย"]),
        ("여보세요 ñandú", ["여보세요", "ñandú"], ["여보세요", "ñandú"]),
        ("😀 \u200f\x00", ["😀", "\u200f", "\x00"], []),
        ("", [], []),
    ],
)
def test_words_of_any_script(text, words, found):
    assert words_and_signs(text) == words
    assert terms(text) == found


@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=5),
    n=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_ngrams_do_not_cross_texts(texts, n):
    found = ngrams(hashed(texts), n)
    bounds = np.cumsum(found.sizes)
    plain = [
        Counter(
            tuple(words[at : at + length])
            for length in range(1, n + 1)
            for at in range(len(words) - length + 1)
        )
        for words in texts
    ]
    for words, stop, size in zip(plain, bounds.tolist(), found.sizes.tolist(), strict=True):
        own = Counter(found.words[stop - size : stop].tolist())
        assert sorted(own.values()) == sorted(words.values())


def test_tfidf_is_scikit_learns_but_for_what_every_text_has():
    scorer = TfidfSimilarity().fit(TARGET, OTHERS, 0)
    reference = TfidfVectorizer(analyzer=terms, sublinear_tf=True).fit(TARGET + OTHERS)
    every = [set(terms(text)) for text in TARGET + OTHERS]
    seen = np.array([sum(w in own for own in every) for w in reference.get_feature_names_out()])
    reference.idf_ = np.log((1 + len(every)) / (0.5 + seen))
    centres = [
        np.asarray(reference.transform(texts).mean(axis=0)).ravel() for texts in (TARGET, OTHERS)
    ]
    apart = centres[0] - centres[1]
    expected = reference.transform(OTHERS) @ (apart / np.linalg.norm(apart))
    assert scorer.score(OTHERS) == pytest.approx(expected)
    nearest = TfidfSimilarity(neighbours=2).fit(TARGET, OTHERS, 0)
    cosines = (reference.transform(OTHERS) @ reference.transform(TARGET).T).toarray()
    assert nearest.score(OTHERS) == pytest.approx(np.sort(cosines, axis=1)[:, 1:].mean(axis=1))


def test_ngram_weights_are_log_ratios():
    method = NgramWeights(n=1, buckets=1 << 20)
    scorer = method.fit(TARGET, OTHERS, 0)
    rates = []
    for texts in (TARGET, OTHERS):
        counts = Counter(word for text in texts for word in words_and_signs(text))
        rates.append((counts, counts.total() + (1 << 20)))

    def ratio(word):
        target, other = ((counts[word] + 1) / total for counts, total in rates)
        return math.log(target / other)

    expected = [np.mean([ratio(word) for word in words_and_signs(text)]) for text in OTHERS]
    assert scorer.score(OTHERS) == pytest.approx(expected)


@pytest.mark.parametrize(
    "method",
    [
        TfidfSimilarity(),
        TfidfSimilarity(neighbours=2),
        NgramWeights(draw="gumbel"),
        PerplexityDifference(least=1),
    ],
)
def test_what_was_learnt_goes_to_other_processes_as_arrays(method, tmp_path):
    scorer = method.fit(TARGET, [*OTHERS, *(f"home {at}" for at in range(20))], 0)
    save(scorer, path := tmp_path / "scorer")
    assert _load(method, path).score([*OTHERS, ""]).tolist() == scorer.score([*OTHERS, ""]).tolist()


class Canary:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["CANARY"]),)


def test_what_is_pickled_in_the_scorers_place_does_not_run(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    hostile = np.array([Canary()], object)
    for number, write in enumerate(
        (
            lambda file: pickle.dump(Canary(), file),
            lambda file: np.save(file, hostile, allow_pickle=True),
            lambda file: np.savez(file, weights=hostile, direction=hostile),
        )
    ):
        with (path := tmp_path / f"scorer-{number}").open("wb") as file:
            write(file)
        with pytest.raises(ValueError, match="allow_pickle"):
            _load(TfidfSimilarity(), path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "method", [TfidfSimilarity(), NgramWeights(), PerplexityDifference(least=1)]
)
def test_scores_do_not_depend_on_what_stands_beside(method):
    scorer = method.fit(TARGET, [*OTHERS, *(f"home {at}" for at in range(20))], 0)
    texts = [*OTHERS, "", "cell gene", " \t", *TARGET]
    together = scorer.score(texts)
    alone = np.concatenate([scorer.score([text]) for text in texts])
    assert together.tolist() == alone.tolist()
    assert np.isneginf(together[[4, 6]]).all()
    assert np.isfinite(np.delete(together, [4, 6])).all()
    assert len(scorer.score([])) == 0


def test_a_witten_bell_model_is_a_distribution():
    """Behind any context the probabilities of all words sum to 1, and a seen word gains."""
    texts = [text.split() for text in TARGET]
    found = hashed(texts)
    vocabulary = np.unique(found.words)
    model = WittenBell.of(_padded(found, vocabulary, 3), 3)
    size = len(vocabulary) + 1
    words = [*sorted({word for text in texts for word in text}), "unheard"]
    for context in (["the", "cell"], ["cell", "the"], ["unheard", "gene"], []):
        asked = _padded(hashed([[*context, word] for word in words]), vocabulary, 3)
        bits = model.log2(asked, size).reshape(len(words), -1)[:, -1]
        assert np.exp2(bits).sum() == pytest.approx(1)
    asked = _padded(hashed([["the", "cell", "divides"], ["the", "cell", "gene"]]), vocabulary, 3)
    bits = model.log2(asked, size).reshape(2, 3)
    assert bits[0, 2] > bits[1, 2]


def test_the_models_are_of_about_the_same_size():
    long = [f"home {at} " * 30 for at in range(200)]
    scorer = PerplexityDifference(least=1).fit(TARGET, long, 0)
    words = sum(len(words_and_signs(text)) for text in TARGET)
    assert scorer.target.orders[0].counts.sum() == words
    assert [model.orders[0].counts.sum() for model in scorer.background] == [60, 60]


def test_a_text_of_the_background_is_judged_by_a_model_that_has_not_seen_it():
    """Otherwise what happens to be in the sample would seem less like the target."""
    rng = np.random.default_rng(1)
    names = np.array([f"w{n}" for n in range(60)])
    texts = [" ".join(rng.choice(names, 40)) for _ in range(120)]
    scorer = PerplexityDifference(least=1).fit(texts[:40], texts[40:80], 0)
    seen, unseen = scorer.score(texts[40:80]), scorer.score(texts[80:])
    assert abs(seen.mean() - unseen.mean()) < 0.1
    # A model that has seen a text is off by more than that.
    by_heart = scorer.score(texts[:40])
    assert by_heart.mean() > unseen.mean() + 1


def test_too_few_texts_for_two_models_are_refused():
    with pytest.raises(DataError, match="raise background_documents"):
        PerplexityDifference(least=1).fit(TARGET, OTHERS[:1], 0)


def test_a_long_text_is_not_like_every_target():
    """Its many words lie near the centre of any texts; only what sets the target apart counts."""
    rng = np.random.default_rng(3)
    common = np.array([f"c{n}" for n in range(400)])
    domain = np.array([f"d{n}" for n in range(30)])

    def text(of_domain, of_common):
        return " ".join([*rng.choice(domain, of_domain), *rng.choice(common, of_common)])

    target = [text(3, 12) for _ in range(60)]
    background = [text(0, 15) for _ in range(60)] + [text(0, 3000)]
    scores = TfidfSimilarity().fit(target, background, 0).score([text(3, 12), text(0, 3000)])
    assert scores[0] > 0.1 > scores[1]
