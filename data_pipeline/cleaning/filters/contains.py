"""Texts that hold, or lack, what a regular expression describes."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from data_pipeline.cleaning.filters.filter import Filter, Refusal


class Contains(Filter):
    """Drops a text in which ``pattern`` occurs; or, with ``keep: with``, one in which it does not.

    Attributes:
        pattern: a regular expression of Python's ``re``; ``(?i)`` in front ignores case.
        keep: which texts stay.
        reason: what these removals are counted as.
    """

    name: Literal["contains"] = "contains"
    pattern: str = Field(min_length=1)
    keep: Literal["with", "without"] = "without"
    reason: str = Field(default="pattern", pattern=r"^[\w.+-]+$")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            msg = f"not a regular expression: {error}"
            raise ValueError(msg) from None
        return pattern

    def build(self, notes: Counter[str]) -> "_Judge":
        del notes
        return _Judge(re.compile(self.pattern), self.keep == "with", self.reason)


@dataclass(frozen=True, slots=True)
class _Judge:
    pattern: re.Pattern[str]
    wanted: bool
    reason: str

    def __call__(self, text: str) -> str | Refusal:
        found = self.pattern.search(text)
        if (found is not None) == self.wanted:
            return text
        return Refusal(self.reason, found.group()[:80] if found else "")
