"""A training stage of a few seconds that rows stop, hang and resume, on two warm ranks."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import commit
from tests.launcher.pretraining import STAGE, Launches, make_data, saved
from tests.warm import Ended, Handle, WarmWorkers

WAIT_SECONDS = 90.0
WORKER = "launcher.worker:main"


@dataclass
class Trial:
    """Runs of the stage, each in a folder of its own."""

    workers: WarmWorkers
    data: Path
    folder: Path
    count: int = 0

    def launches(self, **changes: Any) -> Launches:
        """A run that nothing was done to."""
        self.count += 1
        return Launches(self.workers, self.data, self.folder / f"run-{self.count}", **changes)


@contextmanager
def trial(folder: Path) -> Iterator[Trial]:
    """What a row tries its faults on."""
    with WarmWorkers({}, folder / "warm") as workers:
        yield Trial(workers, make_data(folder), folder)


def draws(repeats: int, row: str) -> Iterator[tuple[int, random.Random]]:
    """A number and its own random choices, for each repeat: the same each time."""
    for number in range(repeats):
        yield number, random.Random(f"{row} {number}")


def start(launches: Launches, fault: str, function: str = WORKER, grace: float = 60.0) -> Handle:
    """Begin a launch with faults; what they strike is kept."""
    launches.number += 1
    launches.folder.mkdir()
    words = [str(launches.recipe), STAGE, f"--report_to={launches.folder}", f"--grace={grace}"]
    environment = {"ONWARD_FAULT": fault, "ONWARD_FAULT_LOG": str(log_of_strikes(launches))}
    given = {"arguments": words}
    return launches.warm.start(function, given, env=environment, grace=20.0, warning=0.5)


def log_of_strikes(launches: Launches) -> Path:
    """The file that each fault leaves word in before it strikes."""
    return launches.output / "struck.jsonl"


def strikes(launches: Launches) -> list[dict[str, Any]]:
    """The faults that have struck: rank, fault and time."""
    path = log_of_strikes(launches)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(is_so: Callable[[], object], seconds: float = WAIT_SECONDS) -> bool:
    """Wait for it; whether it came."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def codes(ended: list[Ended]) -> list[int | None]:
    """Each rank's exit code; None if a signal ended it."""
    return [each.code for each in ended]


def damaged(launches: Launches) -> list[str]:
    """What is wrong with the checkpoints that are there."""
    root = launches.output / STAGE / "checkpoints"
    found = (commit.problems_of(root / f"step-{step}") for step in saved(launches.output))
    return [problem for problems in found for problem in problems]
