"""Where on TensorBoard a number stands: the one place that knows the names of its groups.

TensorBoard sorts groups by name, so they are numbered in the order of the questions: is it
learning, is it forgetting, is it fast, is it healthy. The group is what stands before the first
``/``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ANY = "*"
REST = "**"

_PLACES: dict[str, dict[str, str]] = {
    "train": {
        "loss": "1 learning/loss",
        "tokens_per_second": "3 speed/tokens a second",
        "tflops": "3 speed/TFLOP a second and rank",
        "mfu": "3 speed/MFU",
        "step_seconds": "3 speed/seconds a step",
        "data_wait": "3 speed/seconds a step waiting for data",
        "lr": "4 health/learning rate",
        "rates/*": "4 health/learning rate by group/{}",
        "grad_norm": "4 health/gradient norm",
        "update_norm": "4 health/update norm",
        "update_ratio": "4 health/update to weights",
        "loss_scale": "4 health/loss scale",
        "skipped": "4 health/skipped steps",
        "restarts": "4 health/restarts",
        "memory/*": "4 health/memory/{}",
        "sources/*/share": "5 sources/share, observed/{}",
        "sources/*/asked": "5 sources/share, asked/{}",
        "sources/*/*": "5 sources/{1}/{0}",
        "tokens": "7 totals/tokens",
        "seconds": "7 totals/seconds",
        "*": "1 learning/{}",
    },
    "validation": {
        "*/targets": "7 totals/held-out targets/{}",
        "*/average/targets": "7 totals/held-out targets of the average/{}",
        "*/average/*": "1 learning/held-out {1} of the average/{0}",
        "*/*": "1 learning/held-out {1}/{0}",
    },
    "probe": {
        "*/accuracy": "1 learning/probe accuracy/{}",
        "*/macro_f1": "1 learning/probe macro-F1/{}",
        "*/**": "1 learning/probe {1}/{0}",
    },
    "finetune": {
        "loss": "1 learning/fine-tuning loss",
        "dev/accuracy": "1 learning/dev accuracy",
        "dev/macro_f1": "1 learning/dev macro-F1",
        "chosen/accuracy": "1 learning/dev accuracy of the chosen epoch",
        "chosen/macro_f1": "1 learning/dev macro-F1 of the chosen epoch",
    },
    "forgetting": {
        "*/change": "2 forgetting/change/{}",
        "*/low": "2 forgetting/low/{}",
        "*/high": "2 forgetting/high/{}",
        "**": "2 forgetting/{}",
    },
    "stragglers": {
        "slowest/rank": "3 speed/slowest rank",
        "slowest/ratio": "3 speed/slowest rank to the median",
        "seconds/median": "3 speed/seconds of the median rank",
        "seconds/slowest": "3 speed/seconds of the slowest rank",
    },
    "checkpoint": {
        "stall_seconds": "3 speed/checkpoint stall seconds",
        "seconds": "6 checkpoints/seconds",
        "bytes": "6 checkpoints/bytes",
    },
}

RESULTS = (
    "1 learning/loss",
    "1 learning/held-out loss/",
    "2 forgetting/change",
    "1 learning/probe macro-F1/",
    "1 learning/dev macro-F1 of",
    "3 speed/tokens a second",
    "1 learning/accuracy",
    "1 learning/held-out ",
    "1 learning/probe ",
    "1 learning/dev accuracy of",
    "3 speed/MFU",
)
"""Beginnings of the tags whose last values are a stage's result: the metrics of HParams.

In the order in which they are shown; the page shows the first few at once.
"""


def place(kind: str, path: Sequence[str]) -> str:
    """The tag of a number that a hook writes as ``kind`` under ``path``.

    What is not known stands under its own name, ``KIND/PATH``: nothing is left out.
    """
    for pattern, tag in _PLACES.get(kind, {}).items():
        found = _match(pattern.split("/"), path)
        if found is not None:
            return tag.format(*found)
    return "/".join((kind, *path))


def results(tags: Iterable[str]) -> list[str]:
    """The tags among these whose last values tell how a stage has ended; the chief ones first."""
    ranked = []
    for tag in tags:
        rank = next((at for at, start in enumerate(RESULTS) if tag.startswith(start)), None)
        if rank is not None:
            ranked.append((rank, tag))
    return [tag for _, tag in sorted(ranked)]


def values(
    numbers: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], float | str]]:
    """Every number and every word with its path; lists count as mappings by place.

    ``None`` stands for no number and is left out.
    """
    for name, value in numbers.items():
        here = (*path, str(name))
        if isinstance(value, Mapping):
            yield from values(value, here)
        elif isinstance(value, list | tuple):
            yield from values({str(at): each for at, each in enumerate(value)}, here)
        elif isinstance(value, str):
            yield here, value
        elif value is not None:
            yield here, float(value)


def _match(pattern: Sequence[str], path: Sequence[str]) -> tuple[str, ...] | None:
    """What the stars stand for; the two stars, at the end, for one name or more."""
    found: list[str] = []
    for at, wanted in enumerate(pattern):
        if at >= len(path):
            return None
        if wanted == REST:
            return (*found, "/".join(path[at:]))
        if wanted == ANY:
            found.append(path[at])
        elif wanted != path[at]:
            return None
    return tuple(found) if len(path) == len(pattern) else None
