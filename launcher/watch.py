"""The thread by which a worker hears that it is to stop, whatever its main thread waits for."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from configs.errors import LaunchError
from configs.stop import StopRequest
from launcher.interruption import ONE_REQUEST, SIGNALS
from launcher.outcome import Outcome, Reporter, read_outcomes

STOP = "stop"
"""In the launch folder it asks every worker, on any host; it holds the name of a signal."""


class Watch(threading.Thread):
    """Turns signals, and the launcher's word in a file, into a request to save and end.

    Whoever heeds it (a training stage between its steps) gets ``grace`` seconds. Where nobody
    does, the process ends at once, as it does when the grace is over, at a signal that comes
    later than one request takes, when another rank is lost, and when `onward run` is gone.
    """

    def __init__(
        self, stop: StopRequest, grace: float, folder: Path | None, reporter: Reporter | None
    ) -> None:
        """Set up; ``folder``: where the launcher leaves word, None if started by hand."""
        super().__init__(name="watch", daemon=True)
        self._stop_request = stop
        self._grace = grace
        self._folder = folder
        self._reporter = reporter
        self._number = 0
        self._is_waited_for = False
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        stop.leave = self.leave

    def start(self) -> None:
        """Take the signals; from the main thread alone."""
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        # Written to when a signal comes, even while the main thread sits in C code.
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        super().start()

    def run(self) -> None:
        """Until the process ends."""
        watched = [self._wake, 0] if _has_pipe_for_stdin() else [self._wake]
        while True:
            ready, _, _ = select.select(watched, [], [], 1.0)
            if 0 in ready and not os.read(0, 64):
                self._stop("the launcher is gone", 1)
            for number in os.read(self._wake, 64) if self._wake in ready else b"":
                if number in SIGNALS:
                    self._hear(number)
            if not self._number and (number := self._word_of_launcher()):
                self._hear(number)
            if self._number:
                self._end_in_time()

    def leave(self, why: str, code: int) -> None:
        """End this process at once with an error as its last word; from any thread."""
        if self._reporter is None:
            sys.stderr.write(f"error: {why}\n")
        else:
            kind = LaunchError if code == LaunchError.exit_code else ConnectionError
            self._reporter.failed(kind(why))
        _exit(code)

    def _word_of_launcher(self) -> int:
        """Of the signal whose name it left; 0: none yet."""
        try:
            name = (self._folder / STOP).read_text(encoding="utf-8") if self._folder else ""
        except OSError:
            return 0
        return signal.Signals[name.strip()].value if name.strip() else 0

    def _hear(self, number: int) -> None:
        request = self._stop_request
        if not self._number:
            self._number = number
            self._is_waited_for = request.is_heeded
            request.ask(signal.Signals(number).name)
        elif time.monotonic() - request.asked_at > ONE_REQUEST:
            self._end("asked again before the state was saved")

    def _end_in_time(self) -> None:
        if not self._is_waited_for:
            self._end("")
        if time.monotonic() - self._stop_request.asked_at > self._grace:
            self._end(f"the state could not be saved within {self._grace:g} s")
        if any(map(self._is_lost, self._told())):
            self._end("another rank is lost")

    def _told(self) -> Sequence[Outcome]:
        """What all ranks have left; nothing while a shared file system cannot say."""
        if self._folder is None:
            return ()
        try:
            return read_outcomes(self._folder)
        except (OSError, ValueError):
            return ()

    def _is_lost(self, other: Outcome) -> bool:
        """Another rank that will take part in no save; one that is on another host is not seen."""
        own = self._reporter.outcome if self._reporter else None
        if own is None or other.rank == own.rank or other.kind == "Preempted":
            return False
        gone = other.host == own.host and not Path(f"/proc/{other.pid}").exists()
        return other.state in {"error", "stopped"} or (other.state == "running" and gone)

    def _end(self, why: str) -> None:
        name = signal.Signals(self._number).name
        saved = f": {why}; the last checkpoint stands" if why else ""
        self._stop(f"{name}{saved}", 128 + self._number)

    def _stop(self, why: str, code: int) -> None:
        if self._reporter:
            self._reporter.stopped(why, self._number)
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"stopped by {why}\n")
        _exit(code)


def _has_pipe_for_stdin() -> bool:
    """True under a local launch; pdsh and ssh hand on no pipe of ours."""
    return os.environ.get("ONWARD_STDIN") == "held"


def _exit(code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)
