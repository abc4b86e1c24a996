"""SIGTERM and SIGINT as an exception, so that everything started is ended on the way out."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked this process to stop; not an Exception, so that nobody swallows it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.number


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise Interrupted, after ending this process's own helpers."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)
        # A pool that is closed in an orderly way would first finish what it has begun.
        for child in multiprocessing.active_children():
            child.kill()
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
