"""restarts.jsonl: a line for each restart of a supervised run, and how far its stages have come."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from configs.schema import Config
from launcher.links import ChainRecipe
from launcher.run_folder import FAILED_STARTS, RunFolder

_KEPT_STARTS = 10


class Restart(Config):
    """One line.

    Attributes:
        time: when it was started again, UTC, ISO 8601.
        after_exit_code: that the command would have ended with.
        kind: of the failure; ``launcher.blame.Kind``.
        message: first line of what was said.
        stage: that it goes on with.
        step: of the newest checkpoint; null if the stage has none.
        hosts: used from now on.
        left_out: the others, and why.
        waited_seconds: between the failure and this start.
        lost_seconds: between the newest checkpoint, or the start if it made none, and the failure.
    """

    time: str
    after_exit_code: int
    kind: str
    message: str
    stage: str
    step: int | None
    hosts: Sequence[str]
    left_out: Mapping[str, str]
    waited_seconds: float
    lost_seconds: float


def note(run: RunFolder, restart: Restart) -> None:
    """Add a line that is on the disk afterwards; OSError."""
    # One that was cut off when the machine went down ends here.
    start = "\n" if _is_cut(run.restarts) else ""
    with run.restarts.open("a", encoding="utf-8") as file:
        file.write(start + json.dumps(restart.model_dump(), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _is_cut(path: Path) -> bool:
    return path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0


def keep_words(run: RunFolder, launch: Path) -> None:
    """Copy what the ranks of a failed start have left, as the next start takes its place.

    Under the number of the line that tells of the restart; the newest few stay. OSError.
    """
    lines = run.restarts.read_bytes().count(b"\n") if run.restarts.exists() else 0
    place = launch.parent / FAILED_STARTS
    shutil.copytree(launch, place / str(lines + 1), dirs_exist_ok=True)
    for folder in place.iterdir():
        if folder.name.isdecimal() and int(folder.name) <= lines + 1 - _KEPT_STARTS:
            shutil.rmtree(folder, ignore_errors=True)


def achieved(recipe: ChainRecipe, run: RunFolder) -> set[str]:
    """What shows how far a run has come: stages that are done, and what unfinished ones keep."""
    found = set()
    for name, stage in recipe.stages.items():
        if is_done(run, name):
            found.add(name)
        for pattern in stage.KEPT | stage.ADVANCES:
            found |= {str(path) for path in run.stage(name).glob(pattern)}
    return found


def is_done(run: RunFolder, name: str) -> bool:
    """Whether a stage's status says so."""
    try:
        status: Any = run.status(name)
    except CheckpointError:
        return False
    return status is not None and status.state == "done"


def newest_checkpoint(run: RunFolder, stage: str) -> Path | None:
    """By its number; whether it is intact is seen when it is read."""
    found = [
        folder
        for folder in (run.stage(stage) / "checkpoints").glob("step-*")
        if folder.name.removeprefix("step-").isdecimal()
    ]
    return max(found, key=lambda folder: int(folder.name.removeprefix("step-")), default=None)


def bytes_in(folder: Path | None) -> int:
    """Of the files that lie in a folder."""
    if folder is None:
        return 0
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
