"""How often a supervised run was started again, why, and what share of its time was of use."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from downstream.records import read_json, read_jsonl

_TOLD = {
    *("time", "kind", "after_exit_code", "stage", "step", "lost_seconds", "waited_seconds"),
    *("hosts", "left_out", "message"),
}


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of a training stage that was started again.

    Attributes:
        stage: its name.
        starts: of it, the first included.
        useful_seconds: of the steps that its result was made by; what was lost is not in it.
        wall_seconds: from the first start's first step to the end of the stage.
        goodput: the one divided by the other.
    """

    stage: str
    starts: int
    useful_seconds: float
    wall_seconds: float
    goodput: float


@dataclass(frozen=True, slots=True)
class Interruptions:
    """What a run's restarts.jsonl tells.

    Attributes:
        restarts: its lines.
        goodput: of the finished training stages among them.
    """

    restarts: Sequence[Mapping[str, Any]]
    goodput: Sequence[Goodput]


def interruptions(run: Path) -> Interruptions | None:
    """Of the run in a folder; None if it was never started again."""
    lines = list(_restarts(run / "restarts.jsonl"))
    if not lines:
        return None
    stages = dict.fromkeys(str(line["stage"]) for line in lines)
    found = [_goodput(run / name) for name in stages]
    return Interruptions(lines, [each for each in found if each])


def _restarts(path: Path) -> Iterator[Mapping[str, Any]]:
    """Its lines, without one that was cut off when the machine went down: it makes no results."""
    told = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for text in told.splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.keys() >= _TOLD:
                yield line


def _goodput(folder: Path) -> Goodput | None:
    """None for a stage that does not train, or is not finished."""
    paths = [folder / name for name in ("starts.jsonl", "metrics.jsonl", "status.json")]
    if not all(path.exists() for path in paths):
        return None
    starts, metrics = (read_jsonl(path) for path in paths[:2])
    finished = read_json(paths[2]).get("finished")
    if not starts or not metrics or not finished:
        return None
    begun, ended = (datetime.fromisoformat(text) for text in (starts[0]["time"], finished))
    wall, useful = (ended - begun).total_seconds(), float(metrics[-1]["seconds"])
    share = min(1.0, useful / wall) if wall > 0 else 1.0
    return Goodput(folder.name, len(starts), useful, wall, share)
