"""A launch's output, sorted: what is meant for a person to the screen, all of it to a log."""

import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from launcher.logs import append_line
from launcher.rank_log import Said, read_line
from launcher.view import View

LogOfStage = Callable[[str], Path]


class Relay(threading.Thread):
    """Reads until every process of the group has closed its end.

    The log is the launching programs' own: what a rank writes is in that rank's log, but for what
    it says before it has one and what it says to the screen.
    """

    def __init__(
        self, process: subprocess.Popen[str], stage: str, log_of: LogOfStage, view: View
    ) -> None:
        super().__init__(name="relay", daemon=True)
        self._lines: Iterable[str] = process.stdout or ()
        self._log_of = log_of
        self._view = view
        self.log = log_of(stage)
        self._is_lost = False

    def run(self) -> None:
        """Whoever stops reading stops the workers: their pipe fills up."""
        for line in self._lines:
            for said in read_line(line):
                self._take(said)

    def _take(self, said: Said) -> None:
        if said.kind == "stage":
            self.log = self._log_of(said.text)
            return
        if said.kind == "line":
            self._view.say(said.text)
        if said.kind == "rank":
            self._view.hear(said)
        who = f"rank {said.rank} on {said.host}: " if said.kind == "rank" else ""
        trouble = append_line(self.log, f"{who}{said.text}\n")
        if trouble and not self._is_lost:
            self._is_lost = True
            self._view.say(f"warning: {self.log}: {trouble}; some of the log is lost")
