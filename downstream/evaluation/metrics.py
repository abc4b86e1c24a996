"""Scores of classifications; macro-F1 is over the classes that occur in truth or predictions."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Metric = Literal["macro_f1", "accuracy"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def scores(truth: Sequence[int], predicted: Sequence[int]) -> dict[Metric, float]:
    """All metrics of one set of predictions, in [0, 1]."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, predicted)),
    }


def class_f1(truth: Sequence[int], predicted: Sequence[int], classes: int) -> list[float]:
    """F1 of each class; 0 for one that is neither there nor predicted."""
    from sklearn.metrics import f1_score

    labels = list(range(classes))
    values = f1_score(truth, predicted, labels=labels, average=None, zero_division=0)
    return [float(value) for value in values]


def weighted_scores(
    metric: Metric,
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """A metric for many weightings of the same items at once, from confusion counts.

    Args:
        metric: which one.
        truth: [n] classes.
        predicted: [n] classes.
        weights: [B, n]; how often each of B resamples holds each item.

    Returns:
        [B]: what ``scores`` gives on each resample.
    """
    right = (truth == predicted).astype(np.float64)
    if metric == "accuracy":
        return np.asarray((weights @ right) / weights.sum(axis=1))
    classes = int(max(truth.max(), predicted.max())) + 1
    of_truth, of_predicted = np.eye(classes)[truth], np.eye(classes)[predicted]
    hits = weights @ (of_truth * right[:, None])
    either = weights @ of_truth + weights @ of_predicted
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    return np.asarray(f1.sum(axis=1) / (either > 0).sum(axis=1))
