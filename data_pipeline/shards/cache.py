"""The shared cache of remote shards: files by their digest, fetched once a machine.

``objects/DIGEST`` are whole files, checked before they got that name. Whoever reads one holds a
shared lock (flock) on it, so that it is not removed meanwhile, and a process that was killed holds
none. ``fetching/`` has the locks of those who fetch, what room they were granted, and their
unfinished files, which the next one who needs room removes if they died.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import ClassVar

from pydantic import ByteSize, Field

from configs.errors import DataError, ResourceError
from configs.places import cache_folder
from configs.schema import Config
from data_pipeline.disk import TOO_MANY
from data_pipeline.persistence import Patience, mask_secrets
from data_pipeline.shards.manifest import FileRecord
from data_pipeline.storage import fetch

DEFAULT_BYTES = ByteSize(64 << 30)
SPARE = 64 << 20
"""Bytes of the disk that are left free."""
_BLOCK = 1 << 22


class CacheConfig(Config):
    """Where remote shards are kept on this machine, shared by all that read them.

    Attributes:
        folder: on a disk of this machine; None: ``shards`` in ONWARD_CACHE (~/.cache/onward).
        bytes: no more than this is kept; ``64GiB`` or a number.
    """

    folder: Path | None = Field(None, description="default: shards in ONWARD_CACHE")
    bytes: ByteSize = Field(DEFAULT_BYTES, ge=1, description="so much is kept at most")

    def open(self, release: Callable[[], bool]) -> "ShardCache":
        """The cache; ``release`` closes an open file of this process, or says False."""
        return ShardCache(self.folder or cache_folder() / "shards", int(self.bytes), release)


@dataclass(frozen=True, slots=True)
class _Object:
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class ShardCache:
    """Files by digest, at most ``limit`` bytes of them.

    Attributes:
        folder: of the cache.
        limit: bytes.
        release: closes a file that this process holds open; False when it holds none.
    """

    folder: Path
    limit: int
    release: Callable[[], bool]
    _sound: ClassVar[set[tuple[str, int]]] = set()
    """(digest, inode) of the objects that this process has hashed, or fetched."""

    def open(self, url: str, record: FileRecord, *, rehash: bool) -> FileIO:
        """A remote file, open for reading and pinned until that is closed; fetched if need be.

        Args:
            url: where it is, if it is not here.
            record: its size and digest.
            rehash: do not trust what lies in the cache, but hash it once a process.

        Raises:
            DataError: it cannot be had, or has other bytes than the manifest says.
            ResourceError: no room: what is there is in use.
            OSError: this process has too many files open.
        """
        until = Patience.from_environment().until()
        try:
            for folder in (self._objects, self._fetching):
                folder.mkdir(parents=True, exist_ok=True)
            while True:
                file = self._pinned(record, rehash=rehash)
                if file is not None:
                    return file
                self._fetch(url, record, until)
        except OSError as error:
            if error.errno in TOO_MANY:
                raise
            msg = f"{self.folder}: no cache can be kept there ({error}); set data.cache.folder"
            raise ResourceError(msg) from error

    @property
    def _objects(self) -> Path:
        return self.folder / "objects"

    @property
    def _fetching(self) -> Path:
        return self.folder / "fetching"

    def _pinned(self, record: FileRecord, *, rehash: bool) -> FileIO | None:
        path = self._objects / record.sha256
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file.fileno())
            mark = (record.sha256, status.st_ino)
            sound = status.st_size == record.bytes
            if sound and rehash and mark not in self._sound:
                sound = _sha256(file) == record.sha256
            if status.st_nlink and sound:
                self._sound.add(mark)
                with contextlib.suppress(PermissionError):  # another user's
                    os.utime(file.fileno())  # when it was last used, for the eviction
                return file
            if not sound:
                path.unlink(missing_ok=True)
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def _fetch(self, url: str, record: FileRecord, until: float) -> None:
        from filelock import FileLock, Timeout

        stem = f"{record.sha256}-{record.bytes}"
        lock = FileLock(self._fetching / f"{stem}.lock")
        try:
            lock.acquire(timeout=max(0.0, until - time.monotonic()))
        except Timeout:
            msg = (
                f"{mask_secrets(url)}: another process of this machine was still fetching it when "
                "the deadline came; run again, or raise ONWARD_REMOTE_DEADLINE"
            )
            raise DataError(msg) from None
        granted = self._fetching / f"{stem}.granted"
        try:
            target = self._objects / record.sha256
            if target.exists():  # someone else fetched it while we waited
                return
            self._remove_unfinished(record.sha256)
            granted.unlink(missing_ok=True)  # a dead one's: it would be taken for another's
            self._make_room(url, record, granted, until)
            # Beside the locks first: what lies in objects/ is whole.
            whole = self._fetching / record.sha256
            fetch(url, whole, record.bytes, record.sha256, until=until)
            whole.replace(target)
            self._sound.add((record.sha256, target.stat().st_ino))
        finally:
            granted.unlink(missing_ok=True)
            lock.release()

    def _make_room(self, url: str, record: FileRecord, granted: Path, until: float) -> None:
        """Evict until the file fits, and note that this much is spoken for."""
        while True:
            with self._room_lock(until):
                room, others = self._granted_room(record.bytes, granted)
            if room >= record.bytes:
                return
            if not self.release() and (not others or time.monotonic() > until):
                msg = (
                    f"{self.folder}: {record.bytes:,} bytes are needed for {mask_secrets(url)}, "
                    f"{max(room, 0):,} are available: of its {self.limit:,} bytes the rest is "
                    "in use, or the disk is full; raise data.cache.bytes, or make room"
                )
                raise ResourceError(msg)
            if others:
                time.sleep(random.uniform(0.05, 0.25))

    @contextlib.contextmanager
    def _room_lock(self, until: float) -> Iterator[None]:
        from filelock import FileLock

        lock = FileLock(self.folder / "room.lock")
        # Held for moments: what waits for it looks often.
        with lock.acquire(timeout=max(1.0, until - time.monotonic()), poll_interval=0.002):
            yield

    def _granted_room(self, needed: int, granted: Path) -> tuple[int, int]:
        """The bytes there are for a file, evicting what must go; and what others are fetching.

        ``used`` says how many bytes are taken, or more: those of a file are added before it is
        fetched, and subtracted only here, when everything is counted.
        """
        used = self._used()
        room = min(self.limit - used, self._disk())
        others = 0
        if room < needed:
            others = self._spoken_for()
            room, used = self._evict(needed, others)
        if room >= needed:
            (self.folder / "used").write_text(str(used + needed))
            granted.touch()
        return room, others

    def _used(self) -> int:
        try:
            return int((self.folder / "used").read_text())
        except (FileNotFoundError, ValueError):
            return self.limit

    def _disk(self) -> int:
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize - SPARE

    def _evict(self, needed: int, others: int) -> tuple[int, int]:
        """Remove what was not used for longest and is not pinned.

        Returns:
            The bytes that are free then, and those that are taken.
        """
        there = [found for path in self._objects.iterdir() if (found := _object(path))]
        used = others + sum(each.bytes for each in there)
        if needed > self.limit:
            return self.limit, used  # nothing would make it fit
        disk = self._disk() - others
        for each in sorted(there, key=lambda each: each.used):
            if min(self.limit - used, disk) >= needed:
                break
            if _removed(each.path):
                used -= each.bytes
                disk += each.bytes
        return min(self.limit - used, disk), used

    def _spoken_for(self) -> int:
        """Bytes that others are fetching; what dead ones left is removed."""
        from filelock import FileLock, Timeout

        total = 0
        for granted in self._fetching.glob("*.granted"):
            digest, _, size = granted.stem.partition("-")
            try:
                with FileLock(granted.with_suffix(".lock"), timeout=0):
                    self._remove_unfinished(digest)
                    granted.unlink(missing_ok=True)
            except Timeout:
                total += int(size)
        return total

    def _remove_unfinished(self, digest: str) -> None:
        for path in (*self._fetching.glob(f".{digest}.*.tmp"), self._fetching / digest):
            path.unlink(missing_ok=True)


def _object(path: Path) -> _Object | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _Object(path, status.st_size, status.st_mtime)


def _removed(path: Path) -> bool:
    """Whether an object could go: not while anyone holds a lock on it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _sha256(file: FileIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()
