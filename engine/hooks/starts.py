"""How often a stage has been started: a line a start, which no checkpoint takes back."""

import socket
from datetime import UTC, datetime
from pathlib import Path

from engine.hooks.numbers import JsonLines
from engine.protocols import Backend, Progress


class Starts:
    """Writes ``starts.jsonl``: step, steps, time, host and ranks of each start of the stage.

    A start that was killed before it saved anything counts, so it cannot be in a checkpoint.
    """

    def __init__(self, path: Path, steps: int) -> None:
        """Set up; ``steps``: of the whole run."""
        self._steps = steps
        self._lines = JsonLines(path)
        self._before: int | None = None

    def note(self, backend: Backend, progress: Progress) -> None:
        """This process has come to the first step; a second call is a rollback's and is none."""
        if self._before is not None or backend.rank != 0:
            return
        path = self._lines.path
        self._before = path.read_bytes().count(b"\n") if path.exists() else 0
        self._lines.append(
            {
                "step": progress.step,
                "steps": self._steps,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "ranks": backend.world,
            }
        )

    @property
    def restarts(self) -> int:
        """Starts before this one; known on rank 0."""
        return self._before or 0
