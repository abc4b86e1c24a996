"""A folder as one host sees it: file system, room, speed, and what others have written there."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MIB = 1 << 20
SPEED_BYTES = 64 * _MIB
_SPEED_SECONDS = 5.0


def facts(folder: Path) -> dict[str, Any]:
    """Of the file system that the folder lies on; ``is_there`` False if it is not seen."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return {"is_there": False, "trouble": error.strerror}
    return {
        "is_there": True,
        "kind": kind(folder),
        "free": found.f_bavail * found.f_frsize,
        "total": found.f_blocks * found.f_frsize,
        "free_files": found.f_favail if found.f_files else None,
    }


def kind(folder: Path) -> str:
    """Such as ``nfs4``, ``lustre`` or ``ext4``, by the longest mount point that holds it."""
    place = folder.resolve()
    best, answer = -1, "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        point = Path(fields[1].encode().decode("unicode_escape"))
        depth = len(point.parts)
        if depth >= best and place.is_relative_to(point):
            best, answer = depth, fields[2]
    return answer


def write(folder: Path, name: str, text: str) -> dict[str, str]:
    """Leave a token for the others to read."""
    try:
        with (folder / f"{name}.token").open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return {"trouble": error.strerror or str(error)}
    return {"trouble": ""}


def read(folder: Path, tokens: Mapping[str, str], seconds: float) -> dict[str, str]:
    """By name: why its token is not seen here, or nothing. A network file system is given time."""
    end = time.monotonic() + seconds
    while True:
        found = {name: _differs(folder / f"{name}.token", text) for name, text in tokens.items()}
        if not any(found.values()) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def _differs(path: Path, text: str) -> str:
    try:
        return "" if path.read_text(encoding="utf-8") == text else "it holds something else"
    except OSError as error:
        return error.strerror or str(error)


def speed(folder: Path, name: str) -> dict[str, Any]:
    """Bytes a second of a file that is written and brought to the disk; it is removed."""
    path = folder / f"{name}.bin"
    block = os.urandom(_MIB)
    written = 0
    start = time.monotonic()
    try:
        with path.open("xb", buffering=0) as file:
            while written < SPEED_BYTES and time.monotonic() - start < _SPEED_SECONDS:
                written += file.write(block)
            os.fsync(file.fileno())
    except OSError as error:
        return {"trouble": error.strerror, "written": written, "is_full": _is_full(error)}
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    return {"trouble": "", "written": written, "seconds": seconds, "is_full": False}


def _is_full(error: OSError) -> bool:
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Lock:
    """One file of the folder that this process may hold against those of other hosts."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def take(self, folder: Path) -> dict[str, str]:
        """``taken``, ``busy``, or why neither."""
        try:
            file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            return {"answer": error.strerror or str(error)}
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return {"answer": "busy"}
        except OSError as error:
            os.close(file)
            return {"answer": error.strerror or str(error)}
        self._held.append(file)
        return {"answer": "taken"}

    def release(self) -> dict[str, str]:
        """Let others have it."""
        while self._held:
            os.close(self._held.pop())
        return {"answer": "released"}


def existing(folder: Path) -> Iterator[Path]:
    """The folder and those above it that are there, nearest first."""
    yield from (path for path in (folder, *folder.parents) if path.is_dir())
