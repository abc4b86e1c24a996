"""Is an arm better than the baseline? Paired over test groups and seeds, with honest small samples.

Test groups (files, or single rows where each is its own group) are resampled with replacement,
the same draw for every arm and seed; that gives the variance that comes from the test set. The
paired differences of the seeds give the variance that comes from training. Both add up to the
standard error, and the interval is Student's with Welch-Satterthwaite degrees of freedom.

The percentile interval of the same two-level bootstrap is kept beside it for comparison, and
decides nothing: with three seeds that differ it rejects a true null in up to a quarter of the
trials at level 0.05 (a resample of three seeds knows too little of their spread), the interval
here in four to eight of a hundred (tests/downstream/evaluation/test_calibration.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downstream.evaluation.metrics import METRICS, Metric, weighted_scores

POWER = 0.8
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class TestSet:
    """What every arm is scored on.

    Attributes:
        truth: int64 [n] classes.
        groups: int64 [n]; rows of one group are drawn together.
    """

    __test__ = False  # pytest collects classes called Test...

    truth: NDArray[np.int64]
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How the bootstrap is run."""

    resamples: int = 4000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric of one arm.

    Attributes:
        by_seed: [S] on the whole test set.
        resampled: [B, S] on each of B resamples of the test set.
    """

    by_seed: NDArray[np.float64]
    resampled: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm against the baseline in one metric, in points of that metric (0 to 1).

    Attributes:
        difference: mean over seeds of arm minus baseline.
        low: lower end of the confidence interval.
        high: upper end.
        standard_error: of the difference, test set and seeds together.
        from_test_set: the part of the squared standard error that the test set makes, 0 to 1.
        degrees: of freedom, Welch-Satterthwaite.
        p: two-sided, of no difference.
        p_holm: ``p`` after Holm's correction over the arms.
        significant: ``p_holm`` below one minus the confidence.
        detectable: the smallest true difference found in 8 of 10 such experiments (uncorrected).
        percentile: the two-level bootstrap's own interval, for comparison.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    from_test_set: float
    degrees: float
    p: float
    p_holm: float
    significant: bool
    detectable: float
    percentile: tuple[float, float]


def compare(
    test: TestSet,
    predictions: Mapping[str, NDArray[np.int64]],
    baseline: str,
    how: Resampling,
) -> dict[Metric, dict[str, Difference]]:
    """Every arm but the baseline against it, in every metric.

    Args:
        test: the test set.
        predictions: int64 [S, n] of each arm, the same seeds in the same order, S >= 2.
        baseline: one of the arms.
        how: resamples, confidence, seed.
    """
    differences: dict[Metric, dict[str, Difference]] = {}
    for metric in METRICS:
        spreads = _spreads(metric, test, predictions, how)
        others = [arm for arm in predictions if arm != baseline]
        raw = {
            arm: difference(spreads[arm], spreads[baseline], len(set(test.groups.tolist())), how)
            for arm in others
        }
        differences[metric] = corrected(raw, how.confidence)
    return differences


def group_weights(
    groups: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[count, n]: how often each row is in each resample of the groups."""
    names, index = np.unique(groups, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    return drawn[:, index].astype(np.float64)


def difference(arm: Spread, baseline: Spread, groups: int, how: Resampling) -> Difference:
    """One paired comparison, Holm's correction not made yet (``p_holm`` is ``p``)."""
    from scipy import stats

    paired = arm.by_seed - baseline.by_seed
    resampled = arm.resampled - baseline.resampled
    seeds, estimate = len(paired), float(paired.mean())
    of_test = float(resampled.mean(axis=1).var(ddof=1))
    of_seeds = float(paired.var(ddof=1)) / seeds
    variance = of_test + of_seeds
    tail = (1 - how.confidence) / 2
    if variance == 0:  # equal predictions in every seed: nothing to test
        return _equal(estimate, groups)
    degrees = variance**2 / (of_seeds**2 / (seeds - 1) + of_test**2 / max(1, groups - 1))
    error = variance**0.5
    t = float(stats.t.ppf(1 - tail, degrees))
    p = float(2 * stats.t.sf(abs(estimate) / error, degrees))
    return Difference(
        difference=estimate,
        low=estimate - t * error,
        high=estimate + t * error,
        standard_error=error,
        from_test_set=of_test / variance,
        degrees=float(degrees),
        p=p,
        p_holm=p,
        significant=p < 1 - how.confidence,
        detectable=(t + float(stats.t.ppf(POWER, degrees))) * error,
        percentile=_percentile(resampled, tail, how.seed),
    )


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values in their old order, each at least as large."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def corrected(raw: Mapping[str, Difference], confidence: float) -> dict[str, Difference]:
    """The same comparisons as one family: Holm over all of them."""
    from dataclasses import replace

    adjusted = holm([one.p for one in raw.values()])
    return {
        arm: replace(one, p_holm=p, significant=p < 1 - confidence)
        for (arm, one), p in zip(raw.items(), adjusted, strict=True)
    }


def paired_ratio_interval(
    sums: NDArray[np.float64], counts: NDArray[np.float64], how: Resampling
) -> tuple[float, float]:
    """Percentile interval of ``sums.sum() / counts.sum()`` over resampled rows, both [n]."""
    rng = np.random.default_rng(how.seed)
    rows = np.arange(len(sums))
    weights = group_weights(rows, how.resamples, rng)
    ratios = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(ratios, [(1 - how.confidence) / 2, (1 + how.confidence) / 2])
    return float(low), float(high)


def _spreads(
    metric: Metric,
    test: TestSet,
    predictions: Mapping[str, NDArray[np.int64]],
    how: Resampling,
) -> dict[str, Spread]:
    rng = np.random.default_rng(how.seed)
    parts: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in predictions}
    for start in range(0, how.resamples, _CHUNK):
        weights = group_weights(test.groups, min(_CHUNK, how.resamples - start), rng)
        for arm, by_seed in predictions.items():
            columns = [weighted_scores(metric, test.truth, one, weights) for one in by_seed]
            parts[arm].append(np.stack(columns, axis=1))
    whole = np.ones((1, len(test.truth)))
    return {
        arm: Spread(
            np.array([weighted_scores(metric, test.truth, one, whole)[0] for one in by_seed]),
            np.concatenate(parts[arm]),
        )
        for arm, by_seed in predictions.items()
    }


def _percentile(resampled: NDArray[np.float64], tail: float, seed: int) -> tuple[float, float]:
    count, seeds = resampled.shape
    drawn = np.random.default_rng([seed, 1]).integers(0, seeds, (count, seeds))
    means = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _equal(estimate: float, groups: int) -> Difference:
    return Difference(
        difference=estimate,
        low=estimate,
        high=estimate,
        standard_error=0.0,
        from_test_set=0.0,
        degrees=float(groups - 1),
        p=1.0,
        p_holm=1.0,
        significant=False,
        detectable=0.0,
        percentile=(estimate, estimate),
    )
