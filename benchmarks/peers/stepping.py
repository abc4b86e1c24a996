"""A training loop in a thread of its own that goes on by so many steps when it is asked."""

import threading
from collections.abc import Callable


class Stepping:
    """``passed`` is called by the loop after each step; ``take`` by whoever asks for steps."""

    def __init__(self, train: Callable[[], object]) -> None:
        self._train = train
        self._wanted = threading.Semaphore(0)
        self._taken = threading.Semaphore(0)
        self._tokens = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, steps: int) -> int:
        """Go on by so many steps; the real tokens in them. Raises what the loop raised."""
        before = self._tokens
        for _ in range(steps):
            self._wanted.release()
        for _ in range(steps):
            self._taken.acquire()
            if self._error is not None:
                raise self._error
        return self._tokens - before

    def waits(self) -> None:
        """The loop may begin a step when it returns."""
        self._wanted.acquire()

    def passed(self, tokens: int) -> None:
        """A step is over."""
        self._tokens += tokens
        self._taken.release()

    def _work(self) -> None:
        try:
            self._train()
        except BaseException as error:  # handed on to the thread that asks
            self._error = error
            self._taken.release()
