"""Tasks on a file system that all who work on them share; nothing else coordinates them.

A task that is finished leaves a record. So whoever starts again after a kill does what has no
record, and whoever waits for others looks for theirs.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from configs.errors import DataError
from data_pipeline.disk import disk_errors

Facts = dict[str, Any]
"""What a record tells: JSON."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task has made.

    Attributes:
        facts: for the phases that follow.
        files: what it wrote; with another size, or gone, the task counts as not done.
    """

    facts: Facts
    files: tuple[Path, ...] = ()


class Task(Protocol):
    """A piece of work that one process does alone: picklable, and it may be done twice.

    Attributes:
        name: unlike that of any other task of its phase.
        weight: how much work it is, for the progress.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> int: ...

    def run(self) -> Outcome:
        """Do it; what it writes depends on the task alone."""
        ...


def _ignore(task: Any, facts: Facts) -> None:
    del task, facts


@dataclass(frozen=True, slots=True)
class Phase:
    """Tasks that may be done in any order, once the phases before are finished.

    Attributes:
        name: of the folder of its records.
        title: for people.
        tasks: all of them; everybody who takes part derives the same ones.
        unit: what the weights count.
        watch: is told of each of the participant's own tasks that is done; may raise.
    """

    name: str
    title: str
    tasks: Sequence[Task]
    unit: str = ""
    watch: Callable[[Any, Facts], None] = field(default=_ignore)


@dataclass(frozen=True, slots=True)
class Board:
    """The records of all phases.

    Attributes:
        folder: where they lie.
        root: what the files that tasks wrote are named from.
    """

    folder: Path
    root: Path

    def note(self, phase: str, task: str, outcome: Outcome) -> None:
        """A task is done."""
        sizes = {str(f.relative_to(self.root)): f.stat().st_size for f in outcome.files}
        record = {"facts": outcome.facts, "files": sizes, "machine": _machine()}
        path = self._path(phase, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def facts(self, phase: str, task: str) -> Facts:
        """What a finished task tells; DataError when its record is not there."""
        record = self._record(phase, task)
        if record is None:
            msg = (
                f"{self._path(phase, task)}: no such record, so task {task} of phase {phase} "
                "is not finished; run again"
            )
            raise DataError(msg)
        facts: Facts = record["facts"]
        return facts

    def all_facts(self, phase: Phase) -> Iterator[Facts]:
        """What the tasks of a finished phase tell, in order."""
        for task in phase.tasks:
            yield self.facts(phase.name, task.name)

    def is_done(self, phase: str, task: str) -> bool:
        """Whether a task is done and its files are still there; a record that lies is removed.

        Records and what tasks hand on are not forced onto the disk, which would take longer than
        the tasks: what this machine wrote before it was started last is not believed.
        """
        record = self._record(phase, task)
        if record is None:
            return False
        if _was_restarted(record["machine"]):
            self._path(phase, task).unlink(missing_ok=True)
            return False
        for name, size in record["files"].items():
            path = self.root / name
            if not path.is_file() or path.stat().st_size != size:
                self._path(phase, task).unlink(missing_ok=True)
                return False
        return True

    def done(self, phase: str) -> set[str]:
        """Names of the tasks that have a record."""
        folder = self.folder / phase
        if not folder.is_dir():
            return set()
        return {p.stem for p in folder.iterdir() if p.suffix == ".json" and p.name[0] != "."}

    def _record(self, phase: str, task: str) -> Any:
        try:
            record = json.loads(self._path(phase, task).read_bytes())
            sizes = dict(record["files"])
            machine = {"host": str(record["machine"]["host"]), "start": record["machine"]["start"]}
            if not isinstance(record["facts"], dict):
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return {"facts": record["facts"], "files": sizes, "machine": machine}

    def _path(self, phase: str, task: str) -> Path:
        return self.folder / phase / f"{task}.json"


@cache
def _machine() -> dict[str, str]:
    """This machine, and which start of it."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        start = ""
    return {"host": socket.gethostname(), "start": start}


def _was_restarted(written: dict[str, str]) -> bool:
    here = _machine()
    return written["host"] == here["host"] and written["start"] != here["start"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task, and where to leave word of it: what a process is handed."""

    board: Board
    phase: str
    task: Task


def carry_out(assignment: Assignment) -> Facts:
    """Do a task and note that it is done."""
    with disk_errors(assignment.board.folder):
        outcome = assignment.task.run()
        assignment.board.note(assignment.phase, assignment.task.name, outcome)
    return outcome.facts
