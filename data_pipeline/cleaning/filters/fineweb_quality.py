"""FineWeb's own quality rules (Penedo et al. 2024), by datatrove."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_pipeline.cleaning.filters.datatrove_rules import DatatroveFilter, Share


class FineWebQuality(DatatroveFilter):
    """Lines that end in punctuation, short lines, repeated lines, lists.

    The keys are datatrove's. The defaults are FineWeb's, for English; with ``language: zh`` those
    of FineWeb 2 for Chinese.
    """

    # FineWeb 2's thresholds for cmn_Hani (Penedo et al. 2025); it leaves short lines alone.
    CHINESE: ClassVar[Mapping[str, Any]] = {
        "line_punct_thr": 0.106,
        "short_line_thr": 1.0,
        "char_duplicates_ratio": 0.1,
        "new_line_ratio": 0.178,
    }

    name: Literal["fineweb_quality"] = "fineweb_quality"
    line_punct_thr: Share = 0.12
    line_punct_exclude_zero: bool = False
    short_line_thr: Share = 0.67
    short_line_length: int = Field(default=30, ge=0)
    char_duplicates_ratio: Share = 0.01
    new_line_ratio: float = Field(default=0.3, ge=0)

    @staticmethod
    def rules() -> type[Any]:
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

        found: type[Any] = FineWebQualityFilter
        return found
