"""Which part of a package a docstring documents: a labelled task that every machine has."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Document
from data_pipeline.parallel import Workers
from data_pipeline.randomness import keyed
from downstream.tasks.rows import (
    LabelledRow,
    Limits,
    Locate,
    Side,
    TaskData,
    apply_limits,
    checked,
    letters,
)

if TYPE_CHECKING:
    from data_pipeline.sources import Part

HIDDEN = "NAME"
PROCESSES = 2
"""At most so many read the package; the rows do not depend on it."""
_SUBSTRING_LENGTH = 4
"""Part names this long are hidden inside words, too (TorchDynamo); shorter ones are not."""


class DocumentationPart(Config):
    """Docstrings of an installed package; the class is the second name of the module's path.

    The largest parts are the classes. Names that give the answer away are hidden, a file lies on
    one side alone, and of equal texts one stays (none, if their classes differ).
    """

    name: Literal["documentation_part"] = "documentation_part"
    package: str = Field("torch", description="an importable top-level name; it is not imported")
    classes: int = Field(8, ge=2, description="how many of the largest parts")
    files: int = Field(10, ge=3, description="files that a part lies in at least")
    shortest: int = Field(60, ge=1, description="characters that a text has at least")
    dev: float = Field(0.1, gt=0, lt=1, description="share of the rows")
    test: float = Field(0.25, gt=0, lt=1, description="share of the rows")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.dev + self.test >= 1:
            msg = f"dev {self.dev} and test {self.test} leave nothing for train"
            raise ValueError(msg)
        return self

    def load(self, locate: Locate, seed: int) -> TaskData:
        """Read the docstrings, hide names, deduplicate, split by file."""
        from data_pipeline.sources.installed_documentation import InstalledDocumentation

        parts = InstalledDocumentation(packages=[self.package]).parts(locate)
        with Workers(min(PROCESSES, os.cpu_count() or 1, len(parts))) as workers:
            return self.build(chain.from_iterable(workers.map(read_documents, parts)), seed)

    def build(self, documents: Iterable[Document], seed: int) -> TaskData:
        """The task from docstrings: see the class."""
        by_part = {
            part: found
            for part, found in _by_part(documents, self.shortest).items()
            if len({document.group for document in found}) >= self.files
        }
        labels = sorted(
            sorted(by_part, key=lambda part: (-len(by_part[part]), part))[: self.classes]
        )
        if len(labels) < self.classes:
            msg = (
                f"task {self.name}: {self.package} has {len(labels)} documented parts "
                f"of {self.files} files or more, but classes is {self.classes}; ask for fewer, "
                "or name a larger package"
            )
            raise DataError(msg)
        hidden = hiding_pattern(self.package, labels)
        rows = [_row(document, label, hidden) for label in labels for document in by_part[label]]
        single = deduplicated(rows)
        shares: dict[Side, float] = {
            "train": 1 - self.dev - self.test,
            "test": self.test,
            "dev": self.dev,
        }
        sides = split_by_group(single, shares, seed)
        groups = {row.group for side in ("dev", "test") for row in sides[side]}
        notes = {"rows before deduplication": len(rows), "rows after deduplication": len(single)}
        data = TaskData(apply_limits(sides, self.limits, seed), labels, sorted(groups), notes)
        return checked(data, self.name)

    def check(self, locate: Locate) -> None:
        """DataError if the package is not installed."""
        import importlib.util

        del locate
        if importlib.util.find_spec(self.package.partition(".")[0]) is None:
            msg = f"task {self.name}: package '{self.package}' is not installed; pip install it"
            raise DataError(msg)

    def locations(self) -> list[str]:
        """It reads no file of the run."""
        return []


def read_documents(part: "Part") -> list[Document]:
    """The documents of a part of the source; files that this Python cannot parse have none."""
    return [item for item in part.read() if isinstance(item, Document)]


def hiding_pattern(package: str, labels: Sequence[str]) -> re.Pattern[str]:
    """Matches what gives a part away: dotted names and paths in the package, the parts' names."""
    stems = sorted({label.strip("_") for label in labels}, key=len, reverse=True)
    long = [re.escape(stem) for stem in stems if len(stem) >= _SUBSTRING_LENGTH]
    short = [re.escape(stem) for stem in stems if len(stem) < _SUBSTRING_LENGTH]
    choices = [rf"\b{re.escape(package)}(?:[./]\w+)+", *(f"_*{stem}" for stem in long)]
    choices += [rf"(?<![A-Za-z0-9])_*{stem}(?![A-Za-z0-9])" for stem in short]
    return re.compile("|".join(choices), re.IGNORECASE)


def deduplicated(rows: Sequence[LabelledRow]) -> list[LabelledRow]:
    """One row of each text, compared by its letters alone; none where the classes disagree."""
    classes = defaultdict(set)
    for row in rows:
        classes[letters(row.text)].add(row.label)
    kept, seen = [], set()
    for row in rows:
        key = letters(row.text)
        if len(classes[key]) == 1 and key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def split_by_group(
    rows: Sequence[LabelledRow], shares: Mapping[Side, float], seed: int
) -> dict[Side, list[LabelledRow]]:
    """Whole groups to sides, class by class, each where most is missing; a pure function of ids."""
    side_of: dict[str, Side] = {}
    for label in sorted({row.label for row in rows}):
        sizes = Counter(row.group for row in rows if row.label == label)
        side_of |= _assign(sizes, shares, seed, label)
    sides: dict[Side, list[LabelledRow]] = {side: [] for side in shares}
    for row in rows:
        sides[side_of[row.group]].append(row)
    return sides


def _assign(
    sizes: Mapping[str, int], shares: Mapping[Side, float], seed: int, label: str
) -> dict[str, Side]:
    if len(sizes) < len(shares):
        msg = f"class {label}: its rows lie in {len(sizes)} files; a split needs {len(shares)}"
        raise DataError(msg)
    groups = sorted(sizes, key=lambda group: keyed(seed, "split", group))
    taken: dict[Side, int] = dict.fromkeys(shares, 0)
    side_of = {}
    for index, group in enumerate(groups):
        total = sum(taken.values()) + sizes[group]
        # The first files go one to each side, so that every side has every class.
        side = (
            list(shares)[index]
            if index < len(shares)
            else max(shares, key=lambda side: shares[side] * total - taken[side])
        )
        side_of[group] = side
        taken[side] += sizes[group]
    return side_of


def _by_part(documents: Iterable[Document], shortest: int) -> dict[str, list[Document]]:
    by_part = defaultdict(list)
    for document in documents:
        part = document.metadata["part"]
        if part and len(document.text) >= shortest:
            by_part[part].append(document)
    return by_part


def _row(document: Document, label: str, hidden: re.Pattern[str]) -> LabelledRow:
    return LabelledRow(document.id, document.group, hidden.sub(HIDDEN, document.text), label)
