"""Where the files of shards are: a folder here, or a remote one behind the cache."""

import hashlib
import time
from dataclasses import dataclass
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
    """A folder on this machine's file systems."""

    folder: Path

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
        size = path.stat().st_size
        if size != record.bytes:
            msg = (
                f"{path}: {size} bytes, but {record.bytes} were written; "
                "it was cut short or changed: restore it or prepare the corpus again"
            )
            raise DataError(msg)
        if hashed:
            with readable(path) as stream:
                require_digest(str(path), hashlib.file_digest(stream, "sha256").hexdigest(), record)

    def open(self, file: str, record: FileRecord, *, hashed: bool) -> FileIO:
        del record, hashed  # checked when the data set was opened
        return readable(self.folder / file)


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


def require_digest(name: str, found: str, record: FileRecord) -> None:
    """DataError unless the sha256 of a file is that of its record."""
    if found != record.sha256:
        msg = (
            f"{name}: its bytes are not those that were written (sha256 differs: "
            f"{found[:16]}, expected {record.sha256[:16]}); "
            "restore it or prepare the corpus again"
        )
        raise DataError(msg)
