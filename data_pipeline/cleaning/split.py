"""Which documents are held out: whole groups, by a keyed hash or by name."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.randomness import keyed

Side = Literal["held_out", "train"]
SIDES: tuple[Side, ...] = ("held_out", "train")
"""Held-out texts come first: of two equal ones it is the training text that goes."""


class Split(Config):
    """How a corpus is split. A group lies on one side in every corpus that is split alike.

    Attributes:
        held_out: share of the groups, taken by a hash of seed and name.
        groups: location of a JSON file ``{"held_out": [names of groups]}``.
    """

    held_out: float | None = Field(default=None, gt=0, lt=1)
    groups: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Split":
        if (self.held_out is None) == (self.groups is None):
            msg = "give either held_out (a share) or groups (a file), not both"
            raise ValueError(msg)
        return self

    @property
    def locations(self) -> Sequence[str]:
        """The locations it reads."""
        return () if self.groups is None else (self.groups,)

    def build(self, locate: Callable[[str], Path], seed: int) -> "Splitter":
        """Read the file, if there is one."""
        if self.groups is not None:
            return Splitter(seed, groups=_read_groups(locate(self.groups)))
        return Splitter(seed, share=self.held_out or 0.0)


@dataclass(frozen=True, slots=True)
class Splitter:
    """Puts a group on a side; nothing is held out unless a share or groups are given."""

    seed: int
    share: float = 0.0
    groups: frozenset[str] = frozenset()

    def side(self, group: str) -> Side:
        """The side of every document of this group."""
        # The share is 0 where groups are named, and so no hash lies below it.
        hashed = keyed(self.seed, "held out", group) < self.share * 2.0**64
        return "held_out" if group in self.groups or hashed else "train"


def _read_groups(path: Path) -> frozenset[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); expected a file of names of groups"
        raise DataError(msg) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        msg = f"{path}: not JSON ({error}); expected {{'held_out': [names of groups]}}"
        raise DataError(msg) from None
    names = values.get("held_out") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        msg = f"{path}: expected {{'held_out': [names of groups]}}, found no such list of strings"
        raise DataError(msg)
    return frozenset(names)
