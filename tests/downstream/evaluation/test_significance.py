"""Paired comparisons against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from downstream.evaluation.significance import (
    Resampling,
    Spread,
    TestSet,
    compare,
    difference,
    group_weights,
    holm,
    paired_ratio_interval,
)

HOW = Resampling(resamples=2000, seed=3)


def predictions(rng, truth, right):
    """Right with a probability a row; a wrong one is the next class."""
    return np.where(rng.random(len(truth)) < right, truth, (truth + 1) % 3)


def noisy_arms(rows=600, seeds=3):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, rows)
    base = np.stack([predictions(rng, truth, 0.6) for _ in range(seeds)])
    arm = np.stack([predictions(rng, truth, 0.7) for _ in range(seeds)])
    return truth, base, arm


def test_with_equal_seeds_the_error_is_that_of_paired_items():
    truth, base, arm = noisy_arms()
    arms = {"base": np.stack([base[0]] * 2), "arm": np.stack([arm[0]] * 2)}
    test = TestSet(truth, np.arange(len(truth)))
    one = compare(test, arms, "base", HOW)["accuracy"]["arm"]
    per_item = (arm[0] == truth).astype(float) - (base[0] == truth)
    assert one.difference == pytest.approx(per_item.mean())
    assert one.standard_error == pytest.approx(stats.sem(per_item), rel=0.06)
    assert one.from_test_set == 1
    assert one.degrees == pytest.approx(len(truth) - 1)
    reference = stats.bootstrap((per_item,), np.mean, n_resamples=2000, method="percentile")
    low, high = reference.confidence_interval
    assert (one.low, one.high) == pytest.approx((low, high), abs=0.006)
    assert one.percentile == pytest.approx((low, high), abs=0.006)


def test_with_a_test_set_without_error_it_is_students_test_of_the_seeds():
    paired = np.array([0.01, 0.03, 0.025, 0.04])
    spread = Spread(paired, np.tile(paired, (50, 1)))
    nought = Spread(np.zeros(4), np.zeros((50, 4)))
    one = difference(spread, nought, 100, HOW)
    reference = stats.ttest_1samp(paired, 0)
    assert one.p == pytest.approx(reference.pvalue)
    low, high = reference.confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((low, high))
    assert one.degrees == pytest.approx(3)
    t = stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)
    assert one.detectable == pytest.approx(t * stats.sem(paired))


def test_equal_arms_are_never_significant():
    truth, base, _ = noisy_arms(60)
    test = TestSet(truth, np.arange(60))
    for by_arm in compare(test, {"base": base, "same": base.copy()}, "base", HOW).values():
        one = by_arm["same"]
        assert (one.difference, one.low, one.high) == (0, 0, 0)
        assert (one.p, one.significant) == (1, False)


def test_the_sign_turns_with_the_arms():
    truth, base, arm = noisy_arms(300)
    test = TestSet(truth, np.arange(300))
    forth = compare(test, {"base": base, "arm": arm}, "base", HOW)["macro_f1"]["arm"]
    back = compare(test, {"base": base, "arm": arm}, "arm", HOW)["macro_f1"]["base"]
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.significant
    assert forth.low > 0


def test_rows_of_one_group_count_as_one():
    truth, base, arm = noisy_arms(200)
    arms = {"base": np.repeat(base, 5, axis=1), "arm": np.repeat(arm, 5, axis=1)}
    repeated = np.repeat(truth, 5)
    single = compare(TestSet(truth, np.arange(200)), {"base": base, "arm": arm}, "base", HOW)
    grouped = compare(TestSet(repeated, np.repeat(np.arange(200), 5)), arms, "base", HOW)
    naive = compare(TestSet(repeated, np.arange(1000)), arms, "base", HOW)
    for metric in ("accuracy", "macro_f1"):
        known = single[metric]["arm"].standard_error
        assert grouped[metric]["arm"].standard_error == pytest.approx(known, rel=1e-9)
        assert naive[metric]["arm"].standard_error < known


def test_weights_draw_whole_groups():
    groups = np.array([4, 4, 7, 7, 7, 9])
    weights = group_weights(groups, 200, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


def test_holm_steps_down():
    # Holm (1979) by hand: 4 x 0.01, 3 x 0.02, then no smaller than that, 1 x 0.5.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_significance_is_judged_after_the_correction():
    truth, base, arm = noisy_arms(150)
    test = TestSet(truth, np.arange(150))
    many = {"base": base} | {f"a{i}": np.roll(base, i, axis=0) for i in range(1, 3)} | {"arm": arm}
    by_arm = compare(test, many, "base", HOW)["accuracy"]
    raw = [one.p for one in by_arm.values()]
    assert [one.p_holm for one in by_arm.values()] == pytest.approx(holm(raw))
    assert all(one.significant == (one.p_holm < 0.05) for one in by_arm.values())


def test_same_seed_same_numbers():
    truth, base, arm = noisy_arms(90)
    test = TestSet(truth, np.arange(90))
    arms = {"base": base, "arm": arm}
    assert compare(test, arms, "base", HOW) == compare(test, arms, "base", HOW)


def test_ratio_interval_is_scipys():
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 30, 120).astype(float)
    sums = counts * rng.normal(0.1, 0.3, 120)
    low, high = paired_ratio_interval(sums, counts, Resampling(4000))
    reference = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        random_state=2,
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.006)
