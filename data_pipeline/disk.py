"""What a disk refuses, as an error that names the place."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import Cause, ResourceError

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = FULL | {errno.EFBIG, errno.EROFS, errno.EACCES}
TOO_MANY = {errno.EMFILE, errno.ENFILE}
"""Too many files are open: some may be closed."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, a file over its limit or a place that may not be written to: ResourceError.

    Args:
        path: what is being written, for an error that does not say where it happened.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = Path(error.filename) if isinstance(error.filename, str) else path
        room = _room(where) if error.errno in FULL else ""
        msg = f"{where}: {error.strerror}{room}; {_advice(error)}"
        cause = Cause("space", str(where)) if error.errno in FULL else None
        raise ResourceError(msg, cause) from error


def fsync_path(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(error: OSError) -> str:
    if error.errno in FULL:
        return "make room and run again: what is finished is not done twice"
    if error.errno == errno.EFBIG:
        return "raise the limit on a file's size (ulimit -f) and run again"
    return "give a folder that may be written to"


def _room(path: Path) -> str:
    for folder in path.parents:
        try:
            return f" ({shutil.disk_usage(folder).free:,} bytes free)"
        except OSError:
            continue
    return ""
