"""Where the files of shards are: a folder here, or a remote one behind the cache."""

import hashlib
import os
import time
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Protocol

from configs.errors import DataError
from data_pipeline.persistence import Patience
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.manifest import (
    FILE,
    FileRecord,
    Manifest,
    parse_manifest,
    read_manifest,
)
from data_pipeline.shards.opened import readable
from data_pipeline.storage import join, mask_secrets, open_binary

MANIFEST_ATTEMPTS = 4
"""A page of a proxy's in its place may be gone the next time; a changed manifest stays changed."""


class Place(Protocol):
    """A folder of shards, wherever it is."""

    @property
    def remote(self) -> bool:
        """Whether a file may have to be fetched."""
        ...

    def named(self, file: str) -> str:
        """A file, for a message: its path, or its URL without secrets."""
        ...

    def manifest(self) -> Manifest:
        """What the folder says of itself."""
        ...

    def check(self, file: str, record: FileRecord, *, hashed: bool) -> None:
        """DataError, as early as can be told, when a file is not what its record says."""
        ...

    def open(self, file: str, record: FileRecord, *, hashed: bool) -> FileIO:
        """A file, without a buffer; it is not removed while open."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder on this machine's file systems.

    A file that is not as it was when it was checked is hashed when it is opened.
    """

    folder: Path
    _checked: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)

    @property
    def remote(self) -> bool:
        return False

    def named(self, file: str) -> str:
        return str(self.folder / file)

    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    def check(self, file: str, record: FileRecord, *, hashed: bool) -> None:
        path = self.folder / file
        if not path.is_file():
            msg = f"{path}: missing, though in the manifest; restore it or prepare the corpus again"
            raise DataError(msg)
        if hashed:
            with readable(path) as stream:
                self._require(file, record, stream)
        else:
            status = path.stat()
            self._require_size(file, record, status)
            self._checked[file] = _stamp(status)

    def open(self, file: str, record: FileRecord, *, hashed: bool) -> FileIO:
        del hashed  # done when the data set was opened, unless it was changed meanwhile
        stream = readable(self.folder / file)
        try:
            if self._checked.get(file) != _stamp(os.fstat(stream.fileno())):
                self._require(file, record, stream)
        except BaseException:
            stream.close()
            raise
        return stream

    def _require(self, file: str, record: FileRecord, stream: FileIO) -> None:
        """Leaves the stream at its begin."""
        status = os.fstat(stream.fileno())
        self._require_size(file, record, status)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        require_digest(self.named(file), digest, record)
        stream.seek(0)
        self._checked[file] = _stamp(status)

    def _require_size(self, file: str, record: FileRecord, status: os.stat_result) -> None:
        if status.st_size != record.bytes:
            msg = (
                f"{self.named(file)}: {status.st_size} bytes, but {record.bytes} were written; "
                "it was cut short or changed: restore it or prepare the corpus again"
            )
            raise DataError(msg)


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A folder at a URL. Each file is checked by size and digest when it is fetched."""

    url: str
    cache: ShardCache

    @property
    def remote(self) -> bool:
        return True

    def named(self, file: str) -> str:
        return mask_secrets(join(self.url, file))

    def manifest(self) -> Manifest:
        patience = Patience.from_environment()
        attempt = 1
        while True:
            with open_binary(join(self.url, FILE)) as stream:
                content = stream.read()
            try:
                return parse_manifest(content, self.named(FILE))
            except DataError:
                if attempt == MANIFEST_ATTEMPTS:
                    raise
            time.sleep(min(patience.wait(attempt), patience.deadline))
            attempt += 1

    def check(self, file: str, record: FileRecord, *, hashed: bool) -> None:
        """Nothing yet: it is fetched when it is needed, and checked then."""

    def open(self, file: str, record: FileRecord, *, hashed: bool) -> FileIO:
        return self.cache.open(join(self.url, file), record, rehash=hashed)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What tells that a file is still the one that was looked at: size, time, inode."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def require_digest(name: str, found: str, record: FileRecord) -> None:
    """DataError unless the sha256 of a file is that of its record."""
    if found != record.sha256:
        msg = (
            f"{name}: its bytes are not those that were written (sha256 differs: "
            f"{found[:16]}, expected {record.sha256[:16]}); "
            "restore it or prepare the corpus again"
        )
        raise DataError(msg)
