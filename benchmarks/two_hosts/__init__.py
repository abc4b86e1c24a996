"""P14: the planner's step time against steps of two hosts with a slow cable between them."""

from statistics import median
from typing import Any

from benchmarks.two_hosts.predicted import Figures, figures
from benchmarks.two_hosts.ranks import seen_by_ranks
from configs.errors import ResourceError

TARGET = 0.15
"""Of the measured time."""


def measure() -> dict[str, Any]:
    """How far the predicted time of a step is from the measured one; the worst case is the value.

    Two ranks, one core each, in network namespaces of this machine; the cable between them is
    limited to each rate in turn. A step's time is the median of five. Its compute part is a step
    over the cable without a limit, less the exchanges planned for it; bandwidth and latency, there
    and at each rate, come from all-reduces beside the steps. Bytes sent are counted at the
    interface.

    Without root or iproute2 there are no hosts, and the row says so.
    """
    try:
        seen = seen_by_ranks()
    except ResourceError as error:
        return _row(None, [{"not measured": str(error)}])
    details = [
        _line(found["case"], rate, each)
        for found in seen["cases"]
        for rate, each in figures(found).items()
    ]
    off = [abs(line["ratio"] - 1) for line in details]
    line = {
        "median_off": round(median(off), 3),
        "cases": len(off),
        "goes_first": seen["goes_first"],
    }
    return _row(round(max(off), 3), [line, *details])


def _row(value: float | None, details: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "P14",
        "value": value,
        "target": TARGET,
        "reached": value is not None and value <= TARGET,
        "details": details,
    }


def _line(case: dict[str, Any], rate: str, found: Figures) -> dict[str, Any]:
    return {
        **case,
        "rate": rate,
        "predicted_ms": round(1e3 * found.predicted, 1),
        "measured_ms": round(1e3 * found.measured, 1),
        "ratio": round(found.ratio, 3),
        "communication": round(found.communication / found.predicted, 2),
        "planned_mb": round(found.planned_bytes / 1e6, 2),
        "sent_mb": round(found.sent_bytes / 1e6, 2),
        "gauged_mb_per_s": round(found.bandwidth / 1e6, 1),
    }
