"""Texts in other languages than wanted, told by lingua (its models come with the package)."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.errors import RecipeError
from data_pipeline.cleaning.filters.filter import Filter, Refusal
from data_pipeline.cleaning.packages import require

if TYPE_CHECKING:
    from lingua import LanguageDetector

Code = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]


class LanguageFilter(Filter):
    """Keeps texts in some languages.

    Attributes:
        languages: ISO 639-1 codes of those that stay.
        min_confidence: what the wanted languages must reach together, of 1.
        among: codes of all languages that are thought possible; null: the 75 that lingua knows.
            A few that are known to occur are told apart faster and more surely.
        characters: how many of a text are looked at: a third from its beginning, its middle and
            its end each.
        accuracy: ``high`` counts n-grams of all lengths; ``low`` trigrams alone, which is faster
            and does as well from some 120 characters on.
    """

    name: Literal["language"] = "language"
    languages: tuple[Code, ...] = Field(min_length=1)
    min_confidence: float = Field(default=0.65, gt=0, le=1)
    among: tuple[Code, ...] | None = Field(default=None, min_length=2)
    characters: int = Field(default=1500, ge=30)
    accuracy: Literal["high", "low"] = "low"

    @model_validator(mode="after")
    def _wanted_are_possible(self) -> "LanguageFilter":
        if self.among is not None and not set(self.languages) <= set(self.among):
            msg = f"among {list(self.among)} lacks some of languages {list(self.languages)}"
            raise ValueError(msg)
        return self

    def check(self) -> None:
        """RecipeError when lingua is absent, or does not know a language."""
        require("lingua", "filter language")
        from lingua import Language

        known = {language.iso_code_639_1.name.lower() for language in Language.all()}
        for code in (*self.languages, *(self.among or ())):
            if code not in known:
                msg = f"filter language: lingua does not know '{code}'; {', '.join(sorted(known))}"
                raise RecipeError(msg)

    def build(self, notes: Counter[str]) -> "_Judge":
        del notes
        self.check()
        return _Judge(self, _detector(self.among, self.accuracy))


@dataclass(frozen=True, slots=True)
class _Judge:
    wanted: LanguageFilter
    detector: "LanguageDetector"

    def __call__(self, text: str) -> str | Refusal:
        values = self.detector.compute_language_confidence_values(
            excerpt(text, self.wanted.characters)
        )
        found = {each.language.iso_code_639_1.name.lower(): each.value for each in values}
        likeliest = max(found, key=lambda code: found[code])
        if found[likeliest] == 0:
            return Refusal("unknown", "no letters of any known language")
        confidence = sum(found.get(code, 0.0) for code in self.wanted.languages)
        if confidence >= self.wanted.min_confidence:
            return text
        if likeliest in self.wanted.languages:
            return Refusal("low_confidence", f"{likeliest} {confidence:.2f}")
        return Refusal(likeliest, f"{found[likeliest]:.2f}")


def excerpt(text: str, characters: int) -> str:
    """Beginning, middle and end of a long text."""
    if len(text) <= characters:
        return text
    third = characters // 3
    middle = (len(text) - third) // 2
    return "\n".join([text[:third], text[middle : middle + third], text[-third:]])


@lru_cache(maxsize=4)
def _detector(among: tuple[str, ...] | None, accuracy: str) -> "LanguageDetector":
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    if among is None:
        builder = LanguageDetectorBuilder.from_all_languages()
    else:
        codes = [getattr(IsoCode639_1, code.upper()) for code in among]
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
    if accuracy == "low":
        builder = builder.with_low_accuracy_mode()
    return builder.build()
