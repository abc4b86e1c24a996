"""Ranks that go on, or wait for ever, after one of their launch has ended with an error.

On one host deepspeed's launcher ends the others. On several nobody does: those who are in a
collective lose a connection, and those who wait for word of another rank wait on.
"""

import time
from pathlib import Path

from launcher.outcome import read_outcomes

SECONDS = 30.0
"""In which the others have ended by themselves, or have saved what they were saving."""
_LOOK = 1.0


class Stragglers:
    """Watches a launch folder."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self._folder = folder
        self._seconds = seconds
        self._since: float | None = None
        self._looked = 0.0

    def are_left(self) -> bool:
        """Whether one failed so many seconds ago, and the launch is still there."""
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            if self._since is None and self._has_one_failed():
                self._since = now
        return self._since is not None and now - self._since > self._seconds

    def _has_one_failed(self) -> bool:
        """No, while a shared file system cannot say."""
        try:
            outcomes = read_outcomes(self._folder)
        except (OSError, ValueError):
            return False
        return any(outcome.state in {"error", "stopped"} for outcome in outcomes)
