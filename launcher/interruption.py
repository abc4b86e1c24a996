"""Signals that ask to stop, as an exception: everything started is ended on the way out."""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
ONE_REQUEST = 3.0
"""Seconds: Slurm, shells and deepspeed's launcher send several signals within moments."""


def heeded_signals() -> tuple[signal.Signals, ...]:
    """SIGNALS without a SIGHUP that this process was started to ignore, as nohup does."""
    is_deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(each for each in SIGNALS if each != signal.SIGHUP or not is_deaf)


class Interrupted(BaseException):
    """A signal asked this process to stop; not an Exception, so that nobody swallows it."""

    def __init__(self, number: int, came: Sequence[float] = (), why: str = "") -> None:
        self.number = number
        self._came = came
        super().__init__(why or f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.number

    @property
    def is_repeated(self) -> bool:
        """Whether a signal has come since, so much later that it means: at once."""
        return any(at - self._came[0] > ONE_REQUEST for at in self._came)


@contextmanager
def signals_interrupt() -> Iterator[Sequence[float]]:
    """Within it the first signal raises Interrupted, after ending this process's own helpers.

    Those after it raise nothing, so that no clean-up is cut short; ``is_repeated`` tells of them.
    Gives the times at which they came.
    """
    came: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(time.monotonic())
        if len(came) > 1:
            return
        # A pool that is closed in an orderly way would first finish what it has begun.
        for child in multiprocessing.active_children():
            child.kill()
        raise Interrupted(number, came)

    before = {number: signal.signal(number, stop) for number in heeded_signals()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
