"""A file of a shard: under a temporary name and hashed while it is written."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from data_pipeline.disk import disk_errors, fsync_path
from data_pipeline.shards.manifest import FileRecord


class HashedOutput:
    """It gets its name by leaving the block, or by ``commit``; an error leaves no file.

    A full disk, or a limit on the size of files, is a ResourceError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")
        with disk_errors(path):
            self.stream: IO[bytes] = self.temporary.open("wb")
        self.bytes = 0
        self.hash = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Append."""
        with disk_errors(self.path):
            self.stream.write(content)
        self.hash.update(content)
        self.bytes += len(content)

    def settle(self) -> None:
        """All of it is on the disk then: nothing is left that could fail for want of room."""
        with disk_errors(self.path):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()

    def commit(self) -> FileRecord:
        """Give it its name."""
        if not self.stream.closed:
            self.settle()
        with disk_errors(self.path):
            self.temporary.replace(self.path)
            fsync_path(self.path.parent)
        return self.record

    @property
    def record(self) -> FileRecord:
        """Size and digest of what was written."""
        return FileRecord(bytes=self.bytes, sha256=self.hash.hexdigest())

    def abandon(self) -> None:
        """Leave nothing of it; what has its name stays."""
        # On a full disk closing fails again, for what is still to be written.
        with suppress(OSError):
            self.stream.close()
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> "HashedOutput":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.abandon()
