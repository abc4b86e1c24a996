"""A page on the run in progress, which anybody can open while it is written."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import Preempted
from engine.board.live_page import Standing, Story
from engine.leaving import Leave
from engine.pace import Pace, format_seconds
from engine.protocols import Backend, Hook, Progress, StepRecord

_log = logging.getLogger(__name__)
SECONDS = 15.0
"""At least so long between two pages."""
_SHARE = 0.005
"""Of the time may go into pages: where one takes long they become fewer."""


class LivePage(Hook):
    """Writes ``live.html`` on rank 0: at the start, at logged steps now and then, at the end.

    It reads the files that the other hooks write and stands behind them. Nothing that goes wrong
    with it reaches the training.
    """

    name = "live page"

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        every: int,
        steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            path: of the page, in the stage's folder.
            settings: of the stage, as they are to be shown.
            every: steps between two lines of the metrics.
            steps: the run's last step.
            clock: seconds.
        """
        self._path = path
        self._story = Story(path.parent, settings)
        self._every = every
        self._steps = steps
        self._clock = clock
        self._pace = Pace()
        self._next = float("-inf")
        self._is_lossy = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """The first page of this start."""
        if backend.rank == 0:
            self._pace.see(progress.step, self._clock())
            self._write(self._running(progress.step))

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """A page, if it is time."""
        del record
        if backend.rank != 0 or progress.step % self._every:
            return
        began = self._clock()
        self._pace.see(progress.step, began)
        if began >= self._next:
            self._write(self._running(progress.step))
            taken = self._clock() - began
            self._next = began + max(SECONDS, taken / _SHARE)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """The last page, or none where the loop is left to go on in another way."""
        if backend.rank != 0:
            return
        error = sys.exception()
        if isinstance(error, Leave):
            return
        state = "trained" if error is None else "failed"
        if isinstance(error, Preempted):
            state = "stopped"
        why = "" if error is None else f"{type(error).__name__}: {error}"
        if isinstance(error, Preempted):
            why = str(error)
        self._write(Standing(state, progress.step, self._steps, _now(), why))

    def _running(self, step: int) -> Standing:
        left = self._pace.seconds_left(self._steps)
        eta = "" if left is None else format_seconds(left)
        return Standing("running", step, self._steps, _now(), eta=eta)

    def _write(self, standing: Standing) -> None:
        try:
            self._story.read()
            aside = self._path.with_name(f".{self._path.name}")
            aside.write_text(self._story.page(standing), encoding="utf-8")
            aside.replace(self._path)
        except Exception as error:  # a page is worth no step
            if not self._is_lossy:
                _log.warning("%s is not kept up to date: %s", self._path, error)
            self._is_lossy = True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
