"""DeepSpeed's operators for the CPU are built once, by one process, into a folder of our own.

torch guards a build by a file named ``lock`` whose owner nobody can tell: if it was killed, every
later start waits for ever. Here one process builds at a time (flock), and such a file is reported.
"""

import fcntl
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import OnwardError, ResourceError
from launcher.environment import cores, extensions_folder, gpus, worker_environment

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 10.0


def build_operators() -> Path:
    """Build what is not built yet; returns the folder.

    Raises:
        ResourceError: a lock that a killed process left, or a build that failed.
    """
    folder = extensions_folder()
    with _only_one(folder):
        refuse_stale_locks(folder)
        if not is_built(folder):
            _build(folder)
            (folder / _stamp_name()).touch()
    return folder


def is_built(folder: Path) -> bool:
    """Whether the operators for these versions are there."""
    return (folder / _stamp_name()).exists()


def refuse_stale_locks(folder: Path, settle: float = SETTLE_SECONDS) -> None:
    """Wait for locks of living processes; ResourceError names the ones nobody holds.

    torch keeps the file open while it holds it. On another host that cannot be seen, so a lock
    counts as stale only if it is also older than ``settle`` seconds. Operators that are built are
    only loaded, which takes a moment: a stale lock of theirs is removed.
    """
    for lock in sorted(folder.glob("*/lock")):
        while (age := _age(lock)) is not None:
            if age > settle and not is_open(lock):
                if is_built(folder):
                    logger.warning("%s: left behind by a killed process; removed", lock)
                    lock.unlink(missing_ok=True)
                    break
                msg = (
                    f"{lock}: left behind by a process that ended while it built an operator "
                    f"({age:.0f} s old, and no process holds it); every start would wait for it "
                    f"for ever. Remove it and run again: rm {lock}"
                )
                raise ResourceError(msg)
            time.sleep(0.1)


def _age(lock: Path) -> float | None:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Lock:
    """One of torch's locks: its age in seconds, and whether a process of this host has it."""

    path: Path
    age: float
    is_held: bool


def locks(folder: Path) -> Iterator[Lock]:
    """All that are in the folder now."""
    for path in sorted(folder.glob("*/lock")):
        age = _age(path)
        if age is not None:
            yield Lock(path, age, is_open(path))


def is_open(path: Path) -> bool:
    """Whether a process of this host has the file open (as far as this user may see)."""
    wanted = path.stat() if path.exists() else None
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = link.stat()
        except OSError:
            continue
        if wanted and (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".building").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stamp_name() -> str:
    return f".built-deepspeed-{importlib.metadata.version('deepspeed')}"


def _build(folder: Path) -> None:
    from engine.backends.deepspeed_zero import build_operators as build

    try:
        build()
    except (RuntimeError, OSError) as error:
        msg = (
            f"{folder}: DeepSpeed's operator for the CPU could not be built; a C++ compiler (g++) "
            f"is needed. What it said: {str(error).strip()[-1500:]}"
        )
        raise ResourceError(msg) from error


def main() -> None:
    """``python -m launcher.jit``: build now, on a machine without GPUs."""
    if gpus():
        sys.stderr.write("GPUs are here: no operator needs building\n")
        return
    os.environ.update(worker_environment(os.environ, processes=1, gpus_here=0, core_count=cores()))
    try:
        folder = build_operators()
    except OnwardError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    sys.stderr.write(f"DeepSpeed's operators are ready in {folder}\n")


if __name__ == "__main__":
    main()
