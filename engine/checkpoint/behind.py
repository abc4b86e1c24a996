"""One piece of work at a time in a thread beside the training."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """Work that has begun. The thread does not keep the process from ending."""

    def __init__(self, work: Callable[[], T]) -> None:
        """Begin."""
        self._work = work
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether ``result`` would return at once."""
        return not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether it is done, and raised."""
        return self.is_done and self._error is not None

    def wait(self, limit: float | None) -> bool:
        """Wait for at most ``limit`` seconds, None: however long; whether it is done."""
        self._thread.join(limit)
        return self.is_done

    def result(self) -> T:
        """What the work returned, or raised, once it is done."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def _run(self) -> None:
        try:
            self._answer.append(self._work())
        except BaseException as error:  # handed on to the thread that asks
            self._error = error
