"""FineWeb's own quality rules (Penedo et al. 2024), by datatrove."""

from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from data_pipeline.cleaning.filters.datatrove_rules import Share, check_rules, judge_by
from data_pipeline.cleaning.filters.filter import Filter, Judge

# FineWeb 2's thresholds for cmn_Hani (Penedo et al. 2025); it leaves short lines alone.
CHINESE = {
    "line_punct_thr": 0.106,
    "short_line_thr": 1.0,
    "char_duplicates_ratio": 0.1,
    "new_line_ratio": 0.178,
}


class FineWebQuality(Filter):
    """Lines that end in punctuation, short lines, repeated lines, lists.

    The keys are datatrove's. The defaults are FineWeb's, for English; with ``language: zh`` those
    of FineWeb 2 for Chinese.
    """

    name: Literal["fineweb_quality"] = "fineweb_quality"
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    line_punct_thr: Share = 0.12
    line_punct_exclude_zero: bool = False
    short_line_thr: Share = 0.67
    short_line_length: int = Field(default=30, ge=0)
    char_duplicates_ratio: Share = 0.01
    new_line_ratio: float = Field(default=0.3, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_language(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("language") == "zh":
            return CHINESE | values
        return values

    def check(self) -> None:
        """RecipeError when a package is absent, or words of the language cannot be told."""
        check_rules(self.name, self.language)

    def build(self, notes: Counter[str]) -> Judge:
        self.check()
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

        return judge_by(FineWebQualityFilter, self.model_dump(exclude={"name"}), notes)
