"""The prefetch thread: batches are made while the step before them runs."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from engine import faults
from engine.delivery import Delivery, Sent
from engine.protocols import Batch

_Item = Sequence[Batch] | Sent | BaseException | None


class Batches(Iterator[Sequence[Batch]]):
    """``make(step)`` for each step from ``first_step`` to before ``steps``, made ahead.

    What a step reads is a function of its number alone, so a resumed run just starts later.
    An error in ``make`` comes out of ``next`` at the step it belongs to. Close it, or use it as
    a context manager, to end the thread early. With a ``delivery`` they lie on its GPU.
    """

    def __init__(
        self,
        make: Callable[[int], Sequence[Batch]],
        first_step: int,
        steps: int,
        depth: int = 2,
        delivery: Delivery | None = None,
    ) -> None:
        self._make = make
        self._delivery = delivery
        self._range = range(first_step, steps)
        self._ready: queue.Queue[_Item] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> Sequence[Batch]:
        if self._finished:
            raise StopIteration
        item = self._ready.get()
        if item is None or isinstance(item, BaseException):
            self._finished = True
            if item is None:
                raise StopIteration
            raise item
        return item.received() if isinstance(item, Sent) else item

    def close(self) -> None:
        """End the thread and drop what it made."""
        self._finished = True
        self._closed.set()
        while self._thread.is_alive():
            self._drop_one()
            self._thread.join(timeout=0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _drop_one(self) -> None:
        try:
            self._ready.get_nowait()
        except queue.Empty:
            return

    def _work(self) -> None:
        try:
            for step in self._range:
                if self._closed.is_set():
                    return
                faults.reached("data", step=step)
                batches = self._make(step)
                self._put(self._delivery.send(batches) if self._delivery else batches)
        except BaseException as error:  # handed on to the thread that reads
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: _Item) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
