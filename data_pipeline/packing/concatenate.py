"""Plain concatenation: documents in their order, cut wherever a row ends."""

from typing import ClassVar, Literal

import numpy as np

from data_pipeline.packing.packer import LongestPiece
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText, cut


class ConcatenatePacking(LongestPiece):
    """Rows as full as can be: no more stays empty than the special tokens of two pieces.

    The documents with their special tokens are one long line, cut at every ``shape.room`` tokens.
    What is left of the row's length holds the special tokens of the one piece that the cut adds,
    so that where to cut follows from sums of lengths alone.
    """

    VERSION: ClassVar[int] = 2

    name: Literal["concatenate"] = "concatenate"

    def plan(self, text: ShardText, shape: RowShape) -> PackingPlan:
        """Rows for a shard's sequences; deterministic, by their lengths alone."""
        whole = cut(text.lengths, shape.room_up_to(self.longest)).astype(np.int64)
        if not len(whole):
            return PackingPlan.of(np.zeros(1, np.int64), whole.astype(np.int32))
        lengths, window = whole[:, 2], shape.room
        begins = np.cumsum(lengths + shape.overhead) - lengths - shape.overhead
        first = begins // window
        counts = (begins + lengths - 1) // window - first + 1
        of = np.repeat(np.arange(len(whole)), counts)
        row = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = np.maximum(row * window - begins[of], 0)
        stop = np.minimum((row + 1) * window - begins[of], lengths[of])
        pieces = np.stack((whole[of, 0], whole[of, 1] + start, stop - start), axis=1)
        # A window of special tokens alone is no row.
        firsts = np.flatnonzero(np.diff(row, prepend=-1))
        return PackingPlan.of(np.append(firsts, len(row)), pieces.astype(np.int32))
