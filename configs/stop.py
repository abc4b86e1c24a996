"""A request to stop with the state saved: made by a signal's thread, heeded between steps."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopRequest:
    """What one process has been asked; safe to use from any thread.

    Attributes:
        why: what asked first, such as ``SIGTERM``; empty if nobody has.
        is_heeded: somebody looks at it regularly and will save; otherwise nobody waits for that.
        leave: ends this process at once, from any thread, with a last word and an exit code.
        is_wanted: whether the launch folder is this process's; False: a later launch has it, and
            no word may be left there.
    """

    def __init__(self) -> None:
        self.why = ""
        self.is_heeded = False
        self.asked_at = 0.0
        self.leave: Callable[[str, int], object] = _leave
        self.is_wanted: Callable[[], bool] = lambda: True
        self._asked = threading.Event()

    def __reduce__(self) -> tuple[type["StopRequest"], tuple[()]]:
        """In another process it is a request of its own."""
        return StopRequest, ()

    def ask(self, why: str) -> None:
        """Ask to save and end; the first reason stays."""
        if not self._asked.is_set():
            self.why, self.asked_at = why, time.monotonic()
            self._asked.set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody has asked this process."""
        return self._asked.is_set()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within it the caller looks at ``is_asked`` again and again, and saves when it is set."""
        self.is_heeded = True
        try:
            yield
        finally:
            self.is_heeded = False


def _leave(why: str, code: int) -> None:
    """Without a farewell to the other threads: the main one may never answer."""
    sys.stderr.write(f"error: {why}\n")
    sys.stderr.flush()
    os._exit(code)
