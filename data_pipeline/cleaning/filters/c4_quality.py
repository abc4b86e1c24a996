"""C4's rules (Raffel et al. 2020, section 2.2), by datatrove: they take out lines, too."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_pipeline.cleaning.filters.datatrove_rules import DatatroveFilter


class C4Quality(DatatroveFilter):
    """Drops lines without a final mark, short ones, scripts and policies; then short pages.

    The keys are datatrove's; -1 turns a limit off. The list of bad words is not applied. With
    ``language: zh`` the three rules that need blanks or Latin punctuation are off.
    """

    # C4 is English: these rules take blanks between words and Latin punctuation for granted.
    CHINESE: ClassVar[Mapping[str, Any]] = {
        "filter_no_terminal_punct": False,
        "min_words_per_line": -1,
        "max_word_length": -1,
    }

    name: Literal["c4_quality"] = "c4_quality"
    split_paragraph: bool = True
    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int = Field(default=5, ge=-1)
    min_words_per_line: int = Field(default=3, ge=-1)
    max_word_length: int = Field(default=1000, ge=-1)
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True

    @staticmethod
    def rules() -> type[Any]:
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter

        found: type[Any] = C4QualityFilter
        return found
