"""Rows ahead of those that are asked for: few at a time most of the work would be calls."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_pipeline.rows import Rows
from data_pipeline.streaming.lookup import Found

TOGETHER = 8192
"""Rows looked up at once."""

TOKENS_AHEAD = 1 << 21
"""Read at once for whoever reads on where it left off."""

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


def rows_ahead(length: int) -> int:
    """Rows of a stretch to read ahead: a block, or a half, a quarter ... of one."""
    rows = TOGETHER
    while rows > 1 and rows * length > TOKENS_AHEAD:
        rows //= 2
    return rows


@dataclass(slots=True, eq=False)
class ReadAhead:
    """Rows by global index. Keeps no state but what it would read again. Safe for threads.

    A rank that reads every row of the order (it is alone) gets them from a longer stretch; others,
    who skip the rows of the ranks beside them, just what they ask for.

    Attributes:
        blocks: where rows lie.
        fill: reads them.
        together: rows in a stretch, at most.
    """

    blocks: FoundBlocks
    fill: Callable[[Found], Rows]
    together: int
    _stop: int = -1
    _first: int = 0
    _rows: Rows | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rows(self, start: int, stop: int) -> Rows:
        """The rows from start up to, not including, stop; one at least, none behind the end."""
        with self._lock:
            reads_on = start == self._stop
            self._stop = stop
            first, kept = self._first, self._rows
        if kept is not None and first <= start and stop <= first + len(kept):
            return kept[start - first : stop - first]
        count = stop - start
        # Stretches end where blocks do, or shortly before: rows of two blocks have to be joined.
        room = self.together - start % self.together
        if not reads_on or 2 * count > room:
            return self.fill(self.blocks.rows(start, stop))
        last = start + room // count * count
        last = last if self.blocks.end is None else min(last, self.blocks.end)
        made = self.fill(self.blocks.rows(start, last))
        with self._lock:
            self._first, self._rows = start, made
        return made[:count]
