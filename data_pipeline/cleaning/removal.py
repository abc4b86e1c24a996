"""What was left out of a corpus: a line a document, and counts by step and reason."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from data_pipeline.cleaning.split import Side

HEAD = 120
Counts = dict[str, dict[str, int]]
"""Step -> reason -> how many texts."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One text that was left out.

    Attributes:
        id: of its document.
        side: where it would have stood.
        step: what took it out: a filter's name, ``decontaminate``, ``exact_duplicates``,
            ``near_duplicates``.
        reason: of this step; what is counted.
        detail: what was found, or which document it equals.
        head: the beginning of the text.
    """

    id: str
    side: Side
    step: str
    reason: str
    detail: str = ""
    head: str = ""

    def line(self) -> str:
        """As JSON, with a line end."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class RemovalLog:
    """A file of removals, made with the first of them; and their counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[Side, Counts] = {}
        self._stream: IO[str] | None = None

    def add(self, removal: Removal) -> None:
        """Note one."""
        if self._stream is None:
            self._stream = self.path.open("w", encoding="utf-8")
        self._stream.write(removal.line())
        reasons = self.counts.setdefault(removal.side, {}).setdefault(removal.step, {})
        reasons[removal.reason] = reasons.get(removal.reason, 0) + 1

    def __enter__(self) -> "RemovalLog":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def summed(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> Counts:
    """Counts of several parts together; steps and reasons in the order of their names."""
    total: Counts = {}
    for each in counts:
        for step, reasons in each.items():
            mine = total.setdefault(step, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
    return {step: dict(sorted(total[step].items())) for step in sorted(total)}


def write_names(path: Path, names: Iterable[str]) -> None:
    """One name a line, as JSON: a name may hold a line end."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in names)


def read_names(path: Path) -> Iterator[str]:
    """What ``write_names`` wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)
