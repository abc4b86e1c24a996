"""Work shared by processes: results come in the order of the work, whoever finishes first."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from configs.errors import ResourceError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 3
"""Results a process may be ahead of the one that is waited for: bounds memory."""


class Workers:
    """Some processes, or this one alone when there is but one."""

    def __init__(self, processes: int, at_start: Callable[[], None] | None = None) -> None:
        """Start them.

        Args:
            processes: how many; 1 means this one.
            at_start: called in each process that is started, before its first work.

        The processes end when this one does, however it ends.
        """
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            import multiprocessing
            from concurrent.futures import process

            # Started afresh: a fork would copy locks that threads of this process may hold.
            context = multiprocessing.get_context("spawn")
            self._pool = process.ProcessPoolExecutor(
                processes, context, initializer=_begin, initargs=(at_start,)
            )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of each item, in order; function, items and results must be picklable."""
        if self._pool is None:
            yield from map(function, items)
            return
        from concurrent.futures.process import BrokenProcessPool

        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) >= AHEAD * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            msg = (
                f"one of {self.processes} processes was lost, most likely for want of memory; "
                "run again with fewer `processes`"
            )
            raise ResourceError(msg) from None
        finally:
            for future in waiting:
                future.cancel()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin(at_start: Callable[[], None] | None) -> None:
    """In a process of its own: watch over the one that started it, then what is asked for."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    if at_start is not None:
        at_start()


def _end_with_parent() -> None:
    """A pool's process waits for work on a pipe that it holds open itself: it would wait for ever.

    A signal on the parent's death (PR_SET_PDEATHSIG) would not do: it comes when the thread ends
    that started the process.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
