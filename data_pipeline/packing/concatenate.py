"""Plain concatenation: documents in their order, cut wherever a row ends."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from configs.schema import Config
from data_pipeline.packing.plan import PackingPlan, RowShape


class ConcatenatePacking(Config):
    """Rows as full as can be: no more stays empty than a piece's special tokens."""

    VERSION: ClassVar[int] = 1

    name: Literal["concatenate"] = "concatenate"

    @property
    def identity(self) -> str:
        """Its name, version and settings: the same identity gives the same plans."""
        return f"{self.name} {self.VERSION}"

    def plan(self, lengths: NDArray[np.int32], shape: RowShape) -> PackingPlan:
        """Rows for sequences of these lengths (int32 [N], in tokens); deterministic."""
        pieces: list[tuple[int, int, int]] = []
        offsets = [0]
        left = shape.length
        for sequence, length in enumerate(lengths.tolist()):
            start = 0
            while start < length:
                if left <= shape.overhead:
                    offsets.append(len(pieces))
                    left = shape.length
                size = min(length - start, left - shape.overhead)
                pieces.append((sequence, start, size))
                start += size
                left -= size + shape.overhead
        if offsets[-1] < len(pieces):
            offsets.append(len(pieces))
        return PackingPlan(np.array(offsets, np.int64), np.array(pieces, np.int32).reshape(-1, 3))
