"""A small real pretraining under `onward run --supervise`, for whoever wants to kill its ranks."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import sleep, time
from types import TracebackType
from typing import Any, Self

from benchmarks.faults import scene
from launcher.outcome import Outcome, read_outcomes
from tests.launcher.pretraining import STAGE

POLL = 0.02


class KilledRun:
    """A command at work, what it has said and when, and where its stage stands."""

    def __init__(self, recipe: Path, output: Path, options: Sequence[str], **more: str) -> None:
        """Start it; ``more``: of the environment."""
        command = [sys.executable, "-m", "launcher", "run", str(recipe), *options]
        self.output = output
        self.said: list[tuple[float, str]] = []
        self.begun: list[float] = []
        self.process = subprocess.Popen(
            command,
            env=scene.environment() | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.said.append((time(), line.rstrip("\n")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=120)
        self._reader.join(timeout=5)

    @property
    def ended(self) -> bool:
        """Whether the command has."""
        return self.process.poll() is not None

    def look(self) -> None:
        """Wait for a moment; note when a start has come to its first step."""
        sleep(POLL)
        if self.starts > len(self.begun):
            self.begun.append(time())

    def startups(self, starting: str) -> list[float]:
        """Seconds to the first step of each start that came so far; ``starting``: what is said."""
        starts = self.times_of(starting)
        return [at - max(start for start in starts if start <= at) for at in self.begun]

    def times_of(self, words: str) -> list[float]:
        """When lines with these words were said."""
        return [at for at, line in self.said if words in line]

    @property
    def text(self) -> str:
        """All that was said."""
        return "\n".join(line for _, line in self.said)

    @property
    def step(self) -> int:
        """The last one in the metrics."""
        try:
            text = (self.output / STAGE / "metrics.jsonl").read_bytes()
        except OSError:
            return 0
        whole = text[: text.rfind(b"\n") + 1].splitlines()
        return int(json.loads(whole[-1])["step"]) if whole else 0

    @property
    def starts(self) -> int:
        """How many have come to a step."""
        path = self.output / STAGE / "starts.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The lines of restarts.jsonl."""
        path = self.output / "restarts.jsonl"
        return lines_of(path)

    def ranks(self) -> list[Outcome]:
        """Those of the present launch that live."""
        try:
            found = read_outcomes(self.output / STAGE / "launch")
        except (OSError, ValueError):
            return []
        return [one for one in found if one.state == "running" and self._is_ours(one.pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return str(self.output).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def wait_for_rank(self, step: int, rank: int, starts: int = 0) -> int:
        """The process of a rank, once so many starts have come further than a step; 0: it ended."""
        while not self.ended:
            living = {one.rank: one.pid for one in self.ranks()}
            if self.starts >= starts and self.step > step and rank in living:
                return living[rank]
            sleep(POLL)
        return 0


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines; none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def living(output: Path) -> list[int]:
    """Processes that have a run folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and str(output).encode() in path.read_bytes():
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]
