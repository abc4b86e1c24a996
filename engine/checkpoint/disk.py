"""What to do when a disk will not: try again where that can help, else say why, with the bytes."""

import errno
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from configs.errors import Cause, ResourceError

PAUSES = (0.2, 1.0, 5.0)
"""Seconds before each new try."""
T = TypeVar("T")
_log = logging.getLogger(__name__)
# What a shared file system says of a moment's trouble. A full disk is not of the kind: it stays.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})


class DiskError(ResourceError):
    """A disk that is full, broken or not to be written to; what was there before is untouched."""


def retried(path: Path, action: Callable[[], T]) -> T:
    """Do it, again after each of ``PAUSES`` while the file system has a moment's trouble.

    The action must be one that can be begun anew, whatever its last try left.
    """
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            _log.warning("%s: %s; trying again in %g s", path, error.strerror, pause)
        time.sleep(pause)
    return action()


def appears(is_there: Callable[[], bool]) -> bool:
    """Whether it is there, now or after some of ``PAUSES``.

    A shared file system may be late to show what another host has written.
    """
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        if is_there():
            return True
    return False


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError into a DiskError: the path, why, the bytes ``needed`` and the bytes free."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else path
        raise DiskError(_message(where, error, needed), _cause(where, error, needed)) from error


def require_space(folder: Path, needed: int) -> None:
    """DiskError if fewer than ``needed`` bytes are free where ``folder`` lies."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        msg = f"{folder}: no space: {_amounts(folder, needed)}; {_ROOM}"
        raise DiskError(msg, Cause("space", str(folder), needed))


def free_bytes(path: Path) -> int | None:
    """Bytes free on the file system of ``path`` or its nearest existing parent."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def largest_file() -> int | None:
    """Bytes that one file may have by this process's limit; None if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


_ROOM = "make room (keep fewer checkpoints, say), then run again"


def _cause(path: Path, error: OSError, needed: int | None) -> Cause | None:
    """Room may be made while somebody waits; what may not be written stays so."""
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return Cause("space", str(path), needed) if is_full else None


def _message(path: Path, error: OSError, needed: int | None) -> str:
    why, advice = _reason(path, error)
    return (
        f"{path}: {why}: {_amounts(path, needed)}; nothing under a final name was changed; {advice}"
    )


def _amounts(path: Path, needed: int | None) -> str:
    need = "" if needed is None else f"{needed} bytes needed, "
    return f"{need}{free_bytes(path)} bytes free"


def _reason(path: Path, error: OSError) -> tuple[str, str]:
    """Why, and what to do about it."""
    said = error.strerror or str(error)
    if error.errno == errno.ENOSPC and _has_no_inodes(path):
        advice = "delete small files there, whose number is limited, too, then run again"
        return f"no space for another file ({said})", advice
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no space ({said})", _ROOM
    if error.errno == errno.EFBIG:
        advice = f"a file may have {largest_file()} bytes here (ulimit -f); raise that, run again"
        return f"no space ({said})", advice
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return f"not to be written ({said})", "make the folder writable, then run again"
    return said, "see to the disk, then run again"


def _has_no_inodes(path: Path) -> bool:
    for folder in (path, *path.parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_files > 0 and found.f_favail == 0
    return False
