"""One document a row, for models that cannot keep the documents of a row apart."""

from typing import ClassVar, Literal

import numpy as np

from data_pipeline.packing.packer import PackingConfig
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText, cut


class SinglePacking(PackingConfig):
    """Every document in a row of its own; a longer one than a row is cut into several rows.

    Padding is whatever the documents leave: pack, wherever the model allows it.
    """

    VERSION: ClassVar[int] = 1
    SHARES_ROWS: ClassVar[bool] = False

    name: Literal["single"] = "single"

    def plan(self, text: ShardText, shape: RowShape) -> PackingPlan:
        """Rows for a shard's sequences; deterministic, by their lengths alone."""
        pieces = cut(text.lengths, shape.room)
        return PackingPlan.of(np.arange(len(pieces) + 1, dtype=np.int64), pieces)
