"""Streaming: which rows a run reads, in which order, on which rank; resumable by one number."""

from typing import TYPE_CHECKING

from configs.deferred import deferred
from data_pipeline.streaming.config import DataConfig, SkippedRows, SourceConfig, WeightChange
from data_pipeline.streaming.schedule import Schedule
from data_pipeline.streaming.shuffle import FullShuffle, SourceRows, WindowShuffle

if TYPE_CHECKING:
    from data_pipeline.streaming.cursor import Cursor
    from data_pipeline.streaming.describe import ReadRow, describe_steps
    from data_pipeline.streaming.mixture import Mixture
    from data_pipeline.streaming.order import IndexRange, Order, Picks, slice_of_step
    from data_pipeline.streaming.permutation import permute
    from data_pipeline.streaming.rows import RowReader
    from data_pipeline.streaming.stream import FixedRows, TokenStream

__getattr__ = deferred(
    __name__,
    {
        "cursor": ("Cursor",),
        "describe": ("ReadRow", "describe_steps"),
        "mixture": ("Mixture",),
        "order": ("IndexRange", "Order", "Picks", "slice_of_step"),
        "permutation": ("permute",),
        "rows": ("RowReader",),
        "stream": ("FixedRows", "TokenStream"),
    },
)

__all__ = [
    "Cursor",
    "DataConfig",
    "FixedRows",
    "FullShuffle",
    "IndexRange",
    "Mixture",
    "Order",
    "Picks",
    "ReadRow",
    "RowReader",
    "Schedule",
    "SkippedRows",
    "SourceConfig",
    "SourceRows",
    "TokenStream",
    "WeightChange",
    "WindowShuffle",
    "describe_steps",
    "permute",
    "slice_of_step",
]
