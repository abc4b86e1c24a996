"""Bands, tail and slope are those of plain counting."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.analysis.counts import Counts
from data_pipeline.analysis.tail import long_tail, unseen, zipf_slope


def counts_of(values):
    return Counts.of(np.array(values, np.uint64), np.arange(len(values)))


@given(values=st.lists(st.integers(0, 30), min_size=1, max_size=300), rare=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_bands_hold_every_word_once(values, rare):
    found = long_tail(counts_of(values), rare)
    counts = Counter(values)
    assert sum(band["words"] for band in found["bands"]) == len(counts)
    assert sum(band["share_of_tokens"] for band in found["bands"]) == pytest.approx(1, abs=1e-4)
    for band in found["bands"]:
        inside = [n for n in counts.values() if band["from"] <= n <= band["to"]]
        assert band["words"] == len(inside)
        assert band["share_of_tokens"] == pytest.approx(sum(inside) / len(values), abs=1e-6)
    for one, following in zip(found["bands"], found["bands"][1:], strict=False):
        assert following["from"] == one["to"] + 1
    tail = [n for n in counts.values() if n <= rare]
    assert found["rare_words"] == pytest.approx(len(tail) / len(counts), abs=1e-6)
    assert found["rare_tokens"] == pytest.approx(sum(tail) / len(values), abs=1e-6)


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
def test_the_slope_of_a_zipfian_corpus_is_its_exponent(exponent):
    counts = np.round(1e6 / np.arange(1, 3000) ** exponent).astype(np.int64)
    assert zipf_slope(counts) == pytest.approx(-exponent, abs=0.02)


def test_too_few_words_have_no_slope():
    assert zipf_slope(np.full(9, 100)) is None


def test_unseen_words_are_counted_in_one_direction():
    first, second = counts_of([1, 1, 1, 2, 3]), counts_of([1, 4])
    assert unseen(first, second) == {"words": round(2 / 3, 6), "tokens": 0.4}
    assert unseen(second, first) == {"words": 0.5, "tokens": 0.5}
