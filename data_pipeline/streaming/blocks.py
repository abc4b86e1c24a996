"""Where rows lie is looked up for thousands of them at once, ahead of those that are asked for."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_pipeline.streaming.lookup import Found

TOGETHER = 8192
"""Rows looked up at once: for few at a time most of the work would be calls, not arrays."""

_KEPT = 4


@dataclass(frozen=True, slots=True, eq=False)
class FoundBlocks:
    """Found rows by global index. It only keeps: what it gives is a function of the indices.

    Attributes:
        find: int64 [n], global indices -> what these rows consist of.
        end: global indices that there are; None: no end.
    """

    find: Callable[[NDArray[np.int64]], Found]
    end: int | None
    _blocks: "OrderedDict[int, Found]" = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rows(self, start: int, stop: int) -> Found:
        """The rows from start up to, not including, stop; one at least, none behind the end."""
        parts = []
        for number in range(start // TOGETHER, (stop - 1) // TOGETHER + 1):
            first = number * TOGETHER
            part = slice(max(start - first, 0), min(stop - first, TOGETHER))
            parts.append(self._block(number)[part])
        return Found.joined(parts)

    def _block(self, number: int) -> Found:
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        first, stop = number * TOGETHER, (number + 1) * TOGETHER
        found = self.find(np.arange(first, stop if self.end is None else min(stop, self.end)))
        with self._lock:
            self._blocks[number] = found
            if len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return found
