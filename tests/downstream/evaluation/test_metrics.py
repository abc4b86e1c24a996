"""Scores from confusion counts are scikit-learn's scores of the resampled items themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.evaluation.metrics import METRICS, class_f1, scores, weighted_scores


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=25),
    seed=st.integers(0, 999),
)
def test_weighted_scores_are_scores_of_the_resample(pairs, seed):
    truth, predicted = np.array(pairs).T
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(truth), (5, len(truth)))
    weights = np.stack([np.bincount(d, minlength=len(truth)) for d in drawn]).astype(float)
    for metric in METRICS:
        found = weighted_scores(metric, truth, predicted, weights)
        expected = [scores(truth[d].tolist(), predicted[d].tolist())[metric] for d in drawn]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_class_f1_has_every_class():
    assert class_f1([0, 0, 1], [0, 1, 1], 3) == pytest.approx([2 / 3, 2 / 3, 0])
