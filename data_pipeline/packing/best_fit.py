"""Best-fit decreasing: the longest piece first, each into the fullest row that still holds it.

Pieces of one length are placed together, so that the work grows with the number of distinct
lengths, not of pieces (the histogram idea of Krell et al., "Efficient Sequence Packing", 2021).
"""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.packing.packer import LongestPiece
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText, cut


class BestFitPacking(LongestPiece):
    """Whole documents share a row wherever they fit; only longer ones than a row are cut."""

    VERSION: ClassVar[int] = 1

    name: Literal["best_fit"] = "best_fit"

    def plan(self, text: ShardText, shape: RowShape) -> PackingPlan:
        """Rows for a shard's sequences; deterministic, by their lengths alone."""
        pieces = cut(text.lengths, shape.room_up_to(self.longest))
        by_length = np.argsort(-pieces[:, 2], kind="stable")
        negative, firsts = np.unique(-pieces[by_length, 2], return_index=True)
        rows = _Rows(shape.length)
        row_of = np.empty(len(pieces), np.int64)
        stops = np.append(firsts, len(pieces))[1:]
        equal = zip((-negative).tolist(), firsts.tolist(), stops.tolist(), strict=True)
        for length, first, stop in equal:
            row_of[by_length[first:stop]] = rows.place(length + shape.overhead, stop - first)
        # Within a row the longest piece stands first; ties keep the order of the shard.
        order = by_length[np.argsort(row_of[by_length], kind="stable")]
        offsets = np.searchsorted(row_of[order], np.arange(rows.count + 1))
        return PackingPlan.of(offsets.astype(np.int64), pieces[order])


class _Rows:
    """Open rows by the room left in them."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.count = 0
        self._by_room: dict[int, list[NDArray[np.int64]]] = {}
        # Bit r is set while some row has r tokens left: the best fit is found in one look.
        self._rooms = 0

    def place(self, cost: int, pieces: int) -> NDArray[np.int64]:
        """Best-fit rows for ``pieces`` equal pieces of ``cost`` tokens: int64 [pieces]."""
        placed = []
        while pieces:
            fitting = self._rooms >> cost
            room = cost + (fitting & -fitting).bit_length() - 1 if fitting else self.length
            rows = self._take(room) if fitting else self._new(-(-pieces // (room // cost)))
            # A row stays the best fit until no further piece goes in.
            each = room // cost
            full, rest = divmod(pieces, each)
            filled, partly, unused = np.split(rows, (full, full + (rest > 0)))
            placed += [np.repeat(filled, each), np.repeat(partly, rest)]
            self._put(room - each * cost, filled)
            self._put(room - rest * cost, partly)
            self._put(room, unused)
            pieces -= len(filled) * each + len(partly) * rest
        return np.concatenate(placed)

    def _new(self, count: int) -> NDArray[np.int64]:
        rows = np.arange(self.count, self.count + count)
        self.count += count
        return rows

    def _take(self, room: int) -> NDArray[np.int64]:
        groups = self._by_room[room]
        rows = groups.pop()
        if not groups:
            self._rooms &= ~(1 << room)
        return rows

    def _put(self, room: int, rows: NDArray[np.int64]) -> None:
        if rows.size:
            self._by_room.setdefault(room, []).append(rows)
            self._rooms |= 1 << room
