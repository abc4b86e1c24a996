"""C4's rules (Raffel et al. 2020, section 2.2), by datatrove: they take out lines, too."""

from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from data_pipeline.cleaning.filters.datatrove_rules import check_rules, judge_by
from data_pipeline.cleaning.filters.filter import Filter, Judge

# C4 is English: these rules take blanks between words and Latin punctuation for granted.
CHINESE = {"filter_no_terminal_punct": False, "min_words_per_line": -1, "max_word_length": -1}


class C4Quality(Filter):
    """Drops lines without a final mark, short ones, scripts and policies; then short pages.

    The keys are datatrove's; -1 turns a limit off. The list of bad words is not applied. With
    ``language: zh`` the three rules that need blanks or Latin punctuation are off.
    """

    name: Literal["c4_quality"] = "c4_quality"
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
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
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter

        return judge_by(C4QualityFilter, self.model_dump(exclude={"name"}), notes)
