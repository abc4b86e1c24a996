"""A small file that has its final name only once it is complete, or an error that names it."""

import os
from pathlib import Path

from configs.errors import ResourceError


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename; parent folders are made.

    Raises:
        ResourceError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        msg = (
            f"{path}: cannot be written ({error.strerror or error}); "
            "make room, or give a folder that may be written to"
        )
        raise ResourceError(msg) from error
