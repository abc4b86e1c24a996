"""Gopher's repetition rules (Rae et al. 2021, table A1), by datatrove."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_pipeline.cleaning.filters.datatrove_rules import DatatroveFilter, PositiveShare, Share

NgramShare = tuple[Annotated[int, Field(ge=1, le=64)], Share]


class GopherRepetition(DatatroveFilter):
    """Lines, paragraphs and word n-grams that make up too much of a text.

    The keys are datatrove's; null or an empty list turns a rule off. The defaults are the
    paper's; with ``language: zh`` those of FineWeb 2 for Chinese.

    Attributes:
        top_n_grams: (n, share of the characters that the commonest n-gram may have).
        dup_n_grams: (n, share of the characters that repeated n-grams may have).
    """

    # FineWeb 2's thresholds for cmn_Hani (Penedo et al. 2025), without the rules it leaves out.
    CHINESE: ClassVar[Mapping[str, Any]] = {
        "dup_line_frac": 0.287,
        "dup_para_frac": None,
        "dup_line_char_frac": None,
        "dup_para_char_frac": None,
        "top_n_grams": ((2, 0.256), (3, 0.201), (4, 0.171)),
        "dup_n_grams": ((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)),
    }

    name: Literal["gopher_repetition"] = "gopher_repetition"
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

    @staticmethod
    def rules() -> type[Any]:
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        found: type[Any] = GopherRepetitionFilter
        return found
