"""What every filter offers: a config that builds a judge of texts."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from configs.schema import Config
from data_pipeline.cleaning.normalise import normalise


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a text goes.

    Attributes:
        reason: one of a few words, to be counted.
        detail: what was found in this text.
    """

    reason: str
    detail: str = ""


class Judge(Protocol):
    """Looks at one text at a time."""

    def __call__(self, text: str) -> str | Refusal:
        """The text as it stays (some filters take lines out of it), or why it goes."""
        ...


class Filter(Config, ABC):
    """Base of the filters' configs."""

    @property
    def title(self) -> str:
        """Its name in counts and in the log of what was removed."""
        return str(getattr(self, "name"))  # noqa: B009 -- each filter declares its own literal

    def check(self) -> None:
        """RecipeError when a package that it needs is absent."""
        return

    @abstractmethod
    def build(self, notes: Counter[str]) -> Judge:
        """For one process.

        Args:
            notes: takes counts of what is changed within each text.
        """


@dataclass(slots=True)
class Filters:
    """Several filters, one after the other; each sees what the one before it left.

    Attributes:
        filters: their configs.
        notes: counts of what was changed within texts that pass all filters, by the filter's name.
    """

    filters: tuple[Filter, ...]
    notes: dict[str, Counter[str]] = field(init=False)
    _of_this: dict[str, Counter[str]] = field(init=False)
    _judges: list[tuple[str, Judge]] = field(init=False)

    def __post_init__(self) -> None:
        self.notes = {each.title: Counter() for each in self.filters}
        self._of_this = {each.title: Counter() for each in self.filters}
        self._judges = [
            (each.title, each.build(self._of_this[each.title])) for each in self.filters
        ]

    def judge(self, text: str) -> tuple[str, Refusal] | str:
        """The text that stays, or the name of the first filter that refuses it and why."""
        for noted in self._of_this.values():
            noted.clear()
        for title, judge in self._judges:
            judged = judge(text)
            if isinstance(judged, Refusal):
                return title, judged
            if judged is not text:
                # Where lines were taken out, ends are to be trimmed, or nothing is left.
                text = normalise(judged)
                if not text:
                    return title, Refusal("nothing_left")
        for title, noted in self._of_this.items():
            self.notes[title].update(noted)
        return text
