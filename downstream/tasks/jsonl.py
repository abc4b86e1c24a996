"""A task whose rows lie in three JSON-lines files, the usual form of published data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.errors import DataError
from configs.schema import Config
from downstream.records import read_jsonl
from downstream.tasks.rows import (
    SIDES,
    LabelledRow,
    Limits,
    Locate,
    Side,
    TaskData,
    apply_limits,
    checked,
)


class JsonlTask(Config):
    """Rows that somebody else has split already."""

    name: Literal["jsonl"] = "jsonl"
    train: str
    dev: str
    test: str
    text: str = "text"
    label: str = "label"
    group: str | None = Field(None, description="field of what must not be torn apart (a paper)")
    limits: Limits = Limits()

    def load(self, locate: Locate, seed: int) -> TaskData:
        """Read the three files; what test holds leaves dev and train, what dev holds leaves train.

        Texts are compared up to case and white space: a number or a mark round a word may be what a
        row is about.
        """
        sides = {side: self._rows(locate(getattr(self, side)), side) for side in SIDES}
        if self.group is not None:
            _require_whole_groups(sides)
        labels = sorted({row.label for rows in sides.values() for row in rows})
        groups = sorted({row.group for side in ("dev", "test") for row in sides[side]})
        before = {side: len(rows) for side, rows in sides.items()}
        sides["dev"] = _without(sides["dev"], sides["test"])
        sides["train"] = _without(sides["train"], [*sides["dev"], *sides["test"]])
        notes = {
            "train rows removed because dev or test hold them": before["train"]
            - len(sides["train"]),
            "dev rows removed because test holds them": before["dev"] - len(sides["dev"]),
        }
        data = TaskData(apply_limits(sides, self.limits, seed), labels, groups, notes)
        return checked(data, self.name)

    def check(self, locate: Locate) -> None:
        """DataError if a file is missing."""
        for side in SIDES:
            locate(getattr(self, side))

    def locations(self) -> list[str]:
        """Where it reads from."""
        return [getattr(self, side) for side in SIDES]

    def _rows(self, path: Path, side: Side) -> list[LabelledRow]:
        return [
            self._row(_Line(path, number, record), side)
            for number, record in enumerate(read_jsonl(path), start=1)
        ]

    def _row(self, line: "_Line", side: Side) -> LabelledRow:
        text, label = line.field(self.text, (str,)), line.field(self.label, (str, int))
        name = str(line.record.get("id", f"{side}:{line.number}"))
        group = name if self.group is None else str(line.field(self.group, (str, int)))
        return LabelledRow(name, group, str(text), str(label))


def _without(rows: Sequence[LabelledRow], held: Sequence[LabelledRow]) -> list[LabelledRow]:
    """The rows whose text no held row has."""
    known = {_folded(row.text) for row in held}
    return [row for row in rows if _folded(row.text) not in known]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _require_whole_groups(sides: Mapping[Side, Sequence[LabelledRow]]) -> None:
    groups = {side: {row.group for row in rows} for side, rows in sides.items()}
    for first, second in combinations(SIDES, 2):
        if shared := groups[first] & groups[second]:
            msg = (
                f"task jsonl: {first} and {second} share {len(shared)} groups, such as "
                f"{min(shared)!r}; split by group, or leave 'group' out"
            )
            raise DataError(msg)


@dataclass(frozen=True, slots=True)
class _Line:
    """One object with its place in the file."""

    path: Path
    number: int
    record: dict[str, object]

    def field(self, key: str, kinds: Sequence[type]) -> object:
        """A field of one of ``kinds``; DataError with file:line otherwise."""
        value = self.record.get(key)
        if not isinstance(value, tuple(kinds)) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            msg = (
                f"{self.path}:{self.number}: field '{key}' should be {wanted}, found {value!r:.60}"
            )
            raise DataError(msg)
        return value
