"""A file that has its final name only once it is complete, or an error that names it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.errors import ResourceError


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename; parent folders are made.

    Raises:
        ResourceError: the disk is full, or the place cannot be written to.
    """
    with opened_whole(path) as file:
        file.write(content)


@contextmanager
def opened_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written piece by piece; it gets its name when the block ends without error.

    Raises:
        ResourceError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.filename not in {None, *map(str, (temporary, path, *path.parents))}:
            raise  # of another file, in the block
        msg = (
            f"{path}: cannot be written ({error.strerror or error}); "
            "make room, or give a folder that may be written to"
        )
        raise ResourceError(msg) from error
