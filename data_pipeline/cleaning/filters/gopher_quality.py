"""Gopher's quality rules (Rae et al. 2021, appendix A.1), by datatrove."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_pipeline.cleaning.filters.datatrove_rules import DatatroveFilter, PositiveShare

Positive = Annotated[float, Field(gt=0)]

_ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQuality(DatatroveFilter):
    """Word count, word length, signs, bullets, ellipses, letters, stop words.

    The keys are datatrove's; null turns a rule off. The defaults are the paper's, for English;
    with ``language: zh`` those of FineWeb 2 for Chinese. Other languages need ``stop_words``.

    Attributes:
        max_non_alpha_words_ratio: despite its name the least share of words with a letter.
    """

    # FineWeb 2's thresholds for cmn_Hani (Penedo et al. 2025), which come from the statistics of
    # Chinese text.
    CHINESE: ClassVar[Mapping[str, Any]] = {
        "min_avg_word_length": 1,
        "max_avg_word_length": 5,
        "max_non_alpha_words_ratio": 0.735,
        "stop_words": tuple("的年在月是和日了於·為有被人中为他與後也而由"),
    }

    name: Literal["gopher_quality"] = "gopher_quality"
    min_doc_words: int = Field(default=50, ge=1)
    max_doc_words: Annotated[int, Field(ge=1)] | None = 100_000
    min_avg_word_length: Positive | None = 3
    max_avg_word_length: Positive | None = 10
    max_symbol_word_ratio: Positive | None = 0.1
    max_bullet_lines_ratio: PositiveShare | None = 0.9
    max_ellipsis_lines_ratio: PositiveShare | None = 0.3
    max_non_alpha_words_ratio: PositiveShare | None = 0.8
    min_stop_words: Annotated[int, Field(ge=1)] | None = 2
    stop_words: tuple[str, ...] = _ENGLISH_STOP_WORDS

    @model_validator(mode="after")
    def _stop_words_given(self) -> "GopherQuality":
        own = self.language not in {"en", "zh"} and self.stop_words == _ENGLISH_STOP_WORDS
        if own and self.min_stop_words:
            msg = f"language {self.language}: give its stop_words, or min_stop_words: null"
            raise ValueError(msg)
        return self

    @staticmethod
    def rules() -> type[Any]:
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

        found: type[Any] = GopherQualityFilter
        return found
