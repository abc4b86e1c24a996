"""The run folder: who may write it, what each stage's status is, where everything lies."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from configs.errors import Cause, CheckpointError, DataError, ResourceError
from configs.schema import Config
from configs.yaml_source import yaml_text

RANK_LOGS = "logs"
LIVE_PAGE = "live.html"
FAILED_STARTS = "failed-starts"
"""In a stage's folder: what the ranks of supervised starts that failed have left."""
LAUNCH_FILES = {
    *("status.json", "launcher.log", "launcher.log.1", "launch"),
    *(FAILED_STARTS, RANK_LOGS, LIVE_PAGE),
}
"""In a stage's folder, and no result of the stage."""


class Failure(Config):
    """Why a stage did not finish."""

    kind: str
    message: str
    exit_code: int


class Workers(Config):
    """What the last bits of a sum depend on.

    Attributes:
        processes: the ranks.
        threads: of rank 0's sums; None on GPUs, whose sums do not depend on them.
    """

    processes: int
    threads: int | None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f" (threads in each: {self.threads})"
        plural = "" if self.processes == 1 else "es"
        return f"{self.processes} process{plural}{threads}"


class Status(Config):
    """What ``STAGE/status.json`` says.

    Attributes:
        state: ``stopped``: by a signal, with or without its state saved.
        key: hash of kind, config, version, seed and the inputs' fingerprints.
        fingerprint: digest of what was made; None until it is done.
        inputs: fingerprints of the stages it read, by name.
        outputs: what lies in the folder since it is done.
        workers: the processes that a launched stage was begun with.
        shared_out: how they shared the work then: fact -> value.
        config: the stage's config as its key sees it, so that a change can be told.
        submitted: it was given to a queue, such as Slurm's, and may be at work, or done, unseen.
    """

    state: Literal["running", "done", "stopped", "failed"]
    key: str
    fingerprint: str | None = None
    started: str
    finished: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: list[str] = Field(default_factory=list)
    config: dict[str, Any]
    version: int
    seed: int
    error: Failure | None = None
    workers: Workers | None = None
    shared_out: dict[str, str | int] = Field(default_factory=dict)
    submitted: bool = False


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's place on disk; making one touches nothing."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The recipe as resolved, overrides included."""
        return self.root / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, commit, hosts, seed, command."""
        return self.root / "provenance.json"

    @property
    def restarts(self) -> Path:
        """When and why a supervised run was started again."""
        return self.root / "restarts.jsonl"

    def stage(self, name: str) -> Path:
        """A stage's folder."""
        return self.root / name

    def launch(self, name: str) -> Path:
        """Where the processes of a launch leave word, in the folder of its first stage."""
        return self.stage(name) / "launch"

    def status(self, name: str) -> Status | None:
        """What is known of a stage; None if it never started. CheckpointError if unreadable."""
        path = self.stage(name) / "status.json"
        try:
            return Status.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError:
            msg = (
                f"{path}: not a status that this version wrote; "
                f"give --redo {name} to make the stage anew"
            )
            raise CheckpointError(msg) from None

    def write_status(self, name: str, status: Status) -> None:
        """Replace a stage's status in one step."""
        make_folder(self.stage(name))
        write_atomically(self.stage(name) / "status.json", status.model_dump_json(indent=1) + "\n")

    def outputs(self, name: str) -> list[str]:
        """What a stage left, without hidden files and the launcher's own."""
        found = (path.name for path in self.stage(name).iterdir())
        return sorted(n for n in found if n not in LAUNCH_FILES and not n.startswith("."))

    def discard(self, name: str) -> None:
        """Remove all that a stage made."""
        folder = self.stage(name)
        if folder.exists():
            doomed = folder.with_name(f".discarded-{name}-{os.getpid()}")
            with _disk_errors(folder):
                folder.rename(doomed)
                shutil.rmtree(doomed)

    def remove_leftovers(self) -> None:
        """Take away what processes that were killed have left under temporary names.

        Only who holds the lock may: nobody else writes such files.
        """
        for pattern in (".recipe.yaml.*", ".provenance.json.*", "*/.status.json.*"):
            for path in self.root.glob(pattern):
                path.unlink(missing_ok=True)
        for doomed in self.root.glob(".discarded-*"):
            shutil.rmtree(doomed, ignore_errors=True)

    def write_recipe(self, values: Mapping[str, Any]) -> None:
        """Replace ``recipe.yaml``."""
        write_atomically(self.recipe, yaml_text(values))

    def require(self) -> "RunFolder":
        """Itself if it is a run; DataError otherwise."""
        if not self.recipe.is_file():
            msg = (
                f"{self.root}: not a run folder (it holds no recipe.yaml); give a recipe's 'output'"
            )
            raise DataError(msg)
        return self

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who runs stages here; ResourceError names who is at it already."""
        make_folder(self.root)
        path = self.root / ".lock"
        with _disk_errors(path):
            opened = path.open("a+", encoding="utf-8")
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                msg = (
                    f"{self.root}: in use by {holder}; wait for it, or give another "
                    "run folder with output=FOLDER"
                )
                raise ResourceError(msg, Cause("in_use")) from None
            with _disk_errors(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
                file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_atomically(path: Path, text: str) -> None:
    """The file appears under its name only when complete, and is on disk then.

    Raises:
        ResourceError: the disk is full, or writing is not allowed; the path and the reason.
    """
    from engine.checkpoint.commit import sync_folder

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _disk_errors(path):
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_folder(path.parent)
    except ResourceError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make it and its parents if they are not there; ResourceError with the reason."""
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def _disk_errors(path: Path) -> AbstractContextManager[None]:
    """Those of the checkpoints; who only reads a run folder does without their modules."""
    from engine.checkpoint.disk import disk_errors

    return disk_errors(path)


def read_json(path: Path) -> Any:
    """A JSON file's value, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
