"""Labelled rows, their three sides, and the folder that a task stage leaves behind."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.randomness import keyed
from downstream.records import digest_of_files, read_json, read_jsonl, write_json, write_jsonl

Side = Literal["train", "dev", "test"]
SIDES: tuple[Side, ...] = ("train", "dev", "test")
Locate = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One text and its class.

    Attributes:
        id: names it within its task.
        group: rows of one group never stand on two sides (a file, say).
        text: what the model reads.
        label: the class by name.
    """

    id: str
    group: str
    text: str
    label: str


class Limits(Config):
    """The most rows a side keeps; absent means all. Which ones stay depends on their ids alone."""

    train: PositiveInt | None = None
    dev: PositiveInt | None = None
    test: PositiveInt | None = None


def letters(text: str) -> str:
    """What texts are compared by: their letters, whatever their case; all, if they have none."""
    return "".join(filter(str.isalpha, text.lower())) or text.strip()


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task that is ready to be learned.

    Attributes:
        sides: rows of train, dev and test, none empty.
        labels: class names in the order of their ids.
        held_out: groups that must not be trained on, dev and test before any limit.
        notes: what was left out on the way, for the card.
    """

    sides: Mapping[Side, Sequence[LabelledRow]]
    labels: Sequence[str]
    held_out: Sequence[str]
    notes: Mapping[str, Any]

    def label_ids(self, side: Side) -> list[int]:
        """The rows' classes as indices into ``labels``."""
        ids = {label: index for index, label in enumerate(self.labels)}
        return [ids[row.label] for row in self.sides[side]]

    def save(self, folder: Path) -> str:
        """Write the task folder (all but the card); returns its fingerprint."""
        for side in SIDES:
            write_jsonl(folder / f"{side}.jsonl", (asdict(row) for row in self.sides[side]))
        write_json(folder / "labels.json", list(self.labels))
        write_json(folder / "groups.json", {"held_out": list(self.held_out)})
        return task_fingerprint(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a task folder back; DataError names what is missing or does not fit."""
        labels = read_json(folder / "labels.json")
        sides = {side: _read_side(folder / f"{side}.jsonl", set(labels)) for side in SIDES}
        held_out = read_json(folder / "groups.json")["held_out"]
        return cls(sides, labels, held_out, {})


def task_fingerprint(folder: Path) -> str:
    """Digest of the rows, the labels and the split of a task folder."""
    names = [*(f"{side}.jsonl" for side in SIDES), "labels.json", "groups.json"]
    return digest_of_files(folder / name for name in names)


def limited(rows: Sequence[LabelledRow], most: int | None, seed: int) -> list[LabelledRow]:
    """At most ``most`` rows, picked by a keyed hash of their ids; the order stays."""
    if most is None or len(rows) <= most:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda index: keyed(seed, "limit", rows[index].id))
    return [rows[index] for index in sorted(ranked[:most])]


def apply_limits(
    sides: Mapping[Side, Sequence[LabelledRow]], limits: Limits, seed: int
) -> dict[Side, list[LabelledRow]]:
    """Every side cut to its limit."""
    return {side: limited(rows, getattr(limits, side), seed) for side, rows in sides.items()}


def checked(data: TaskData, name: str) -> TaskData:
    """The task itself; DataError if a side is empty or train lacks a class."""
    for side in SIDES:
        if not data.sides[side]:
            msg = f"task {name}: no row is left in {side}; loosen its filters or give more data"
            raise DataError(msg)
    if len(data.labels) < 2:
        msg = f"task {name}: found the classes {list(data.labels)}; at least two are needed"
        raise DataError(msg)
    seen = Counter(row.label for row in data.sides["train"])
    missing = [label for label in data.labels if not seen[label]]
    if missing:
        msg = f"task {name}: train has no row of {missing}; raise its limit or leave the class out"
        raise DataError(msg)
    return data


def _read_side(path: Path, labels: set[str]) -> list[LabelledRow]:
    rows = []
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            row = LabelledRow(**record)
        except TypeError:
            msg = f"{path}:{number}: expected the keys id, group, text, label; found {list(record)}"
            raise DataError(msg) from None
        if row.label not in labels:
            msg = f"{path}:{number}: label {row.label!r} is not in labels.json"
            raise DataError(msg)
        rows.append(row)
    return rows
