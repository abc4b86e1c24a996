"""F30: two jobs in one run folder, a clock that goes back, a file system that shows things late."""

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import CheckpointError, ResourceError
from engine.checkpoint import commit, newest
from engine.checkpoint.resume import _content_problems
from engine.checkpoint.save import Alone, save
from engine.protocols import Progress
from launcher.run_folder import RunFolder

STEPS = (8, 9, 10, 16)


class _Nothing:
    """A run whose state has no tensors."""

    def fragments(self) -> list[Any]:
        return []

    def extra_state(self) -> dict[str, Any]:
        return {}


class _SeenLate:
    """A rank on another host: rank 0, which says so, sees all that is there."""

    def rank(self) -> int:
        return 1

    def world(self) -> int:
        return 2

    def all_gather_object(self, value: Any, /) -> list[Any]:
        return [[], value]

    def broadcast_object(self, value: Any, /) -> Any:
        return [] if value and isinstance(value[0], str) else value


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat tries all three."""
    tries = {"a second job": _second_job, "a clock": _clock, "late files": _late}
    held, notes = 0, []
    for number in range(repeats):
        for name, attempt in tries.items():
            (own := folder / f"{number}-{name.replace(' ', '-')}").mkdir(parents=True)
            if problem := attempt(own):
                notes.append(f"{name}: {problem}")
            else:
                held += 1
    return Measured(held, repeats * len(tries), {"kinds": len(tries)}, tuple(notes))


def _second_job(folder: Path) -> str:
    """Another process holds the folder; one that is killed holds it no more."""
    context = multiprocessing.get_context("fork")
    taken = context.Event()

    def hold() -> None:
        with RunFolder(folder).lock():
            taken.set()
            time.sleep(60)

    other = context.Process(target=hold, daemon=True)
    other.start()
    try:
        if not taken.wait(30):
            return "the first job did not get the folder"
        said = f"process {other.pid} on {socket.gethostname()} since "
        try:
            with RunFolder(folder).lock():
                return "the second job was let in"
        except ResourceError as error:
            if said not in str(error) or error.exit_code != 7:
                return f"it does not name who holds it: {error}"
    finally:
        other.kill()
        other.join()
    with RunFolder(folder).lock():
        return ""


def _clock(folder: Path) -> str:
    """Checkpoints whose times are in the wrong order, and names that sort otherwise as text."""
    for step in STEPS:
        save(folder, Progress(step), _Nothing(), {"cursor": step}, "recipe", Alone())
    for number, step in enumerate(STEPS):
        path = folder / f"step-{step}"
        for each in (path, *path.iterdir()):
            os.utime(each, (2_000_000_000 - number * 86_400,) * 2)
    (folder / "latest").write_text("step-8\n", encoding="utf-8")
    found = newest(folder, "recipe")
    return "" if found and found.step == STEPS[-1] else f"went on from {found and found.step}"


def _late(folder: Path) -> str:
    """What rank 0 sees, another host sees half a second later; and what never comes is named."""
    path = save(folder, Progress(4), _Nothing(), {"cursor": 1}, "recipe", Alone())
    for shown in (True, False):
        with _hidden(path / commit.MANIFEST, 0.5 if shown else 60):
            try:
                found = newest(folder, "recipe", _SeenLate())
            except CheckpointError as error:
                if shown or commit.MANIFEST not in str(error):
                    return str(error)
                continue
        if not shown or found is None or found.step != 4:
            return f"found {found}" if shown else "took what it could not see"
    return "" if not _content_problems(path, Alone(), "full") else "left damaged"


@contextmanager
def _hidden(path: Path, seconds: float) -> Iterator[None]:
    aside = path.with_name(f".{path.name}.hidden")
    path.rename(aside)
    timer = threading.Timer(seconds, lambda: aside.rename(path))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if aside.exists():
            aside.rename(path)


ROW = Row(
    "F30",
    "two jobs in one run folder; times of files in the wrong order; files another host sees late",
    "the second job is refused by name; the step decides, not the time; what is late is waited for",
    measure,
)
if __name__ == "__main__":
    sys.stdout.write(f"{measure(1, Path(sys.argv[1]))}\n")
