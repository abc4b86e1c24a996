"""Gopher's repetition rules (Rae et al. 2021, table A1), by datatrove."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipeline.cleaning.filters.datatrove_rules import (
    PositiveShare,
    Share,
    check_rules,
    judge_by,
)
from data_pipeline.cleaning.filters.filter import Filter, Judge

NgramShare = tuple[Annotated[int, Field(ge=1, le=64)], Share]

# FineWeb 2's thresholds for cmn_Hani (Penedo et al. 2025), without the rules it leaves out.
CHINESE = {
    "dup_line_frac": 0.287,
    "dup_para_frac": None,
    "dup_line_char_frac": None,
    "dup_para_char_frac": None,
    "top_n_grams": ((2, 0.256), (3, 0.201), (4, 0.171)),
    "dup_n_grams": ((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)),
}


class GopherRepetition(Filter):
    """Lines, paragraphs and word n-grams that make up too much of a text.

    The keys are datatrove's; null or an empty list turns a rule off. The defaults are the
    paper's; with ``language: zh`` those of FineWeb 2 for Chinese.

    Attributes:
        top_n_grams: (n, share of the characters that the commonest n-gram may have).
        dup_n_grams: (n, share of the characters that repeated n-grams may have).
    """

    name: Literal["gopher_repetition"] = "gopher_repetition"
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    dup_line_frac: PositiveShare | None = 0.3
    dup_para_frac: PositiveShare | None = 0.3
    dup_line_char_frac: PositiveShare | None = 0.2
    dup_para_char_frac: PositiveShare | None = 0.2
    top_n_grams: tuple[NgramShare, ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[NgramShare, ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )

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
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return judge_by(GopherRepetitionFilter, self.model_dump(exclude={"name"}), notes)
