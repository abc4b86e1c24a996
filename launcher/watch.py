"""The thread by which a worker hears that it is to stop, whatever its main thread waits for."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import LaunchError
from configs.stop import StopRequest
from launcher.heartbeat import Pulse
from launcher.interruption import ONE_REQUEST, heeded_signals
from launcher.outcome import Outcome, Reporter, read_outcomes

STOP = "stop"
"""In the launch folder it asks every worker, on any host; it holds the name of a signal."""


class Watch(threading.Thread):
    """Turns signals, and the launcher's word in a file, into a request to save and end.

    Whoever heeds it (a training stage between its steps) gets ``grace`` seconds. Where nobody
    does, the process ends at once, as it does when the grace is over, at a signal that comes
    later than one request takes, when another rank is lost, and when `onward run` is gone: that
    closes the stdin of its own machine's ranks, and others miss its heartbeat, which is a request.

    Attributes:
        each_second: is done about so often.
    """

    def __init__(
        self,
        stop: StopRequest,
        grace: float,
        folder: Path | None,
        reporter: Reporter | None,
        pulse: Pulse | None = None,
    ) -> None:
        """Set up.

        Args:
            stop: what is asked.
            grace: seconds for saving.
            folder: where the launcher leaves word; None if started by hand.
            reporter: leaves this rank's word.
            pulse: hears the launcher's heartbeat; None: it has none.
        """
        super().__init__(name="watch", daemon=True)
        self._stop_request = stop
        self._grace = grace
        self._folder = folder
        self._reporter = reporter
        self._pulse = pulse
        self._signals = heeded_signals()
        self._number = 0
        self._why = ""
        self._is_waited_for = False
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        self.each_second: Callable[[], object] = lambda: None
        stop.leave = self.leave
        if pulse:
            stop.is_wanted = pulse.is_own

    def start(self) -> None:
        """Take the signals; from the main thread alone."""
        for number in self._signals:
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
                if number in self._signals:
                    self._hear(number)
            if not self._number and (number := self._word_of_launcher()):
                self._hear(number)
            if self._pulse:
                self._heed(self._pulse)
            self.each_second()
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

    def _heed(self, pulse: Pulse) -> None:
        """End without a word where nobody reads it; save where the launcher is mute."""
        sign = pulse.look()
        if sign in {"over", "other"}:
            said = "another launch runs here now" if sign == "other" else "the launch was ended"
            sys.stderr.write(f"{said}; this rank ends\n")
            _exit(LaunchError.exit_code)
        if sign == "silent" and not self._number and not _has_pipe_for_stdin():
            self._hear(signal.SIGTERM, f"no sign of `onward run` for {pulse.limit:g} s")

    def _hear(self, number: int, why: str = "") -> None:
        request = self._stop_request
        if not self._number:
            self._number = number
            self._why = why or signal.Signals(number).name
            self._is_waited_for = request.is_heeded
            request.ask(self._why)
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
        saved = f": {why}; the last checkpoint stands" if why else ""
        self._stop(f"{self._why}{saved}", 128 + self._number)

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
