"""Texts that are too short or too long."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.cleaning.filters.filter import Filter, Refusal
from data_pipeline.cleaning.letters import Letters


class Length(Filter):
    """Bounds on characters and words; both ends belong to what stays.

    Words are runs of letters and digits; in scripts without space between words each letter is
    one.
    """

    name: Literal["length"] = "length"
    min_characters: int | None = Field(default=None, ge=1)
    max_characters: int | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _bounds(self) -> "Length":
        for what in ("characters", "words"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                msg = f"min_{what} {low} is more than max_{what} {high}"
                raise ValueError(msg)
        if self == Length.model_construct():
            msg = "give at least one of min_characters, max_characters, min_words, max_words"
            raise ValueError(msg)
        return self

    def build(self, notes: Counter[str]) -> "_Judge":
        del notes
        return _Judge(self)


@dataclass(frozen=True, slots=True)
class _Judge:
    bounds: Length

    def __call__(self, text: str) -> str | Refusal:
        given = self.bounds
        refusal = _outside("characters", len(text), given.min_characters, given.max_characters)
        if refusal is None and (given.min_words is not None or given.max_words is not None):
            words = len(Letters.of([text]).starts)
            refusal = _outside("words", words, given.min_words, given.max_words)
        return refusal or text


def _outside(what: str, found: int, low: int | None, high: int | None) -> Refusal | None:
    if low is not None and found < low:
        return Refusal(f"too_few_{what}", str(found))
    if high is not None and found > high:
        return Refusal(f"too_many_{what}", str(found))
    return None
