"""Files wherever they lie: local paths, and any URL that fsspec has a driver for."""

import hashlib
import io
import os
import posixpath
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from configs.errors import DataError, ResourceError
from data_pipeline.disk import fsync_path
from data_pipeline.persistence import (
    Patience,
    given_up,
    mask_secrets,
    persist,
    require_no_secrets,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "RemoteFile",
    "fetch",
    "is_url",
    "join",
    "list_files",
    "mask_secrets",
    "open_binary",
    "remote_file",
    "require_no_secrets",
]

BLOCK = 8 << 20
"""Bytes a request."""
BUFFER = 1 << 20
"""Bytes that an open file reads at least."""
WRONG_BYTES = 5
"""Attempts at a file that arrives whole, but is not the one expected."""
_VERSIONS = ("ETag", "etag", "e_tag", "md5Hash", "checksum", "blob_id", "last_commit",
             "Last-Modified", "LastModified", "mtime", "updated", "created")  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a remote store.

    Attributes:
        url: its own.
        name: relative to the folder, or to what stands before the first wildcard.
        bytes: its size; None where the store does not tell.
        version: what changes when the file does (an ETag, a digest, a time); None as above.
    """

    url: str
    name: str
    bytes: int | None
    version: str | None


def is_url(location: str | Path) -> bool:
    """Whether it is a URL and no local path; ``stage:NAME`` is none."""
    return isinstance(location, str) and "://" in location


def join(folder: str, name: str) -> str:
    """The URL of a file in a folder; a query of the folder's stays behind the name."""
    address, mark, query = folder.partition("?")
    return f"{address.rstrip('/')}/{name}{mark}{query}"


def open_binary(location: str | Path) -> IO[bytes]:
    """Open for reading, at any place; a remote file is read on where a connection broke.

    Raises:
        DataError: it is not there or not readable; of a remote one also while it is read, once
            ``ONWARD_REMOTE_DEADLINE`` has passed without a byte.
    """
    if is_url(location):
        return io.BufferedReader(_RemoteStream(str(location), Patience.from_environment()), BUFFER)
    try:
        return Path(location).open("rb")
    except OSError as error:
        msg = f"{location}: cannot be read ({error.strerror or error})"
        raise DataError(msg) from error


def remote_file(url: str) -> RemoteFile:
    """Size and version of the file at a URL; DataError when there is none."""
    return persist(url, lambda: _remote_file(url))


def list_files(location: str) -> list[RemoteFile]:
    """All files below a remote folder, those that a pattern (``*``, ``**``, ``[...]``) matches,
    or the one file that the URL is of; by name.

    A URL that ends in ``/`` is a folder. DataError when nothing is found.
    """  # noqa: D205 -- one sentence
    found = persist(location, lambda: _listed(location))
    if not found:
        msg = f"{mask_secrets(location)}: no file there; check the address"
        raise DataError(msg)
    files = [
        # Pages of links, as HTTP servers give them, say nothing of sizes.
        file if file.bytes is not None else _renamed(remote_file(file.url), file.name)
        for file in found
    ]
    return sorted(files, key=lambda file: file.name)


def fetch(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str | None = None,
    until: float | None = None,
) -> None:
    """Copy a remote file; ``target`` appears once all of it is there, checked and on the disk.

    A broken connection is taken up where it broke, until the deadline; other bytes than expected
    are fetched afresh, ``WRONG_BYTES`` times at most.

    Args:
        url: of the file.
        target: where it goes; its folder exists.
        size: in bytes, as it must be; None: whatever the store says.
        sha256: hex digest, as it must be; None: not checked.
        until: a deadline that was set earlier, by ``time.monotonic``; None:
            ONWARD_REMOTE_DEADLINE from now.

    Raises:
        DataError: not to be had by the deadline, or other bytes than expected each time.
        ResourceError: the disk is full, or the folder cannot be written to.
    """
    patience = Patience.from_environment()
    begun, until = time.monotonic(), until or patience.until()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        for attempt in count(1):
            found = _copy(url, temporary, size, patience, until)
            if found.matches(size, sha256):
                break
            wait = patience.wait(attempt)
            if attempt == WRONG_BYTES or time.monotonic() + wait >= until:
                wrong = found.mismatch(size, sha256)
                raise given_up(url, wrong, attempt, time.monotonic() - begun)
            time.sleep(wait)
        with _writing(target):
            temporary.replace(target)
            fsync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Copied:
    """What a copy turned out to be."""

    bytes: int
    sha256: str | None

    def matches(self, size: int | None, sha256: str | None) -> bool:
        return size in {None, self.bytes} and sha256 in {None, self.sha256}

    def mismatch(self, size: int | None, sha256: str | None) -> DataError:
        found, expected = (
            f"{'any number of' if count is None else count} bytes"
            + (f" with sha256 {digest}" if digest else "")
            for count, digest in ((self.bytes, self.sha256), (size, sha256))
        )
        return DataError(f"{found}, expected {expected}")


def _copy(url: str, path: Path, size: int | None, patience: Patience, until: float) -> _Copied:
    total, digest = 0, hashlib.sha256()
    with _RemoteStream(url, patience, until) as source:
        if source.size is not None and size not in {None, source.size}:
            return _Copied(source.size, None)
        with _writing(path):
            sink = path.open("wb")
        with sink:
            while block := source.read(BLOCK):
                with _writing(path):
                    sink.write(block)
                digest.update(block)
                total += len(block)
            with _writing(path):
                sink.flush()
                os.fsync(sink.fileno())
    return _Copied(total, digest.hexdigest())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); make room, or go elsewhere"
        raise ResourceError(msg) from error


class _RemoteStream(io.RawIOBase):
    """A remote file from which reading goes on, at the same place, after a failure."""

    def __init__(self, url: str, patience: Patience, until: float | None = None) -> None:
        super().__init__()
        self._url, self._patience, self._until = url, patience, until
        self._position = 0
        self._ranges = True
        self._file: Any = None
        # An error for a file that is not there belongs to the opening.
        self._known = persist(url, lambda: _remote_file(url), patience, until)

    @property
    def size(self) -> int | None:
        """Its size, if the store tells."""
        return self._known.bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._known.bytes is not None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if not self.seekable():
            msg = f"{mask_secrets(self._url)}: the store does not tell its size"
            raise io.UnsupportedOperation(msg)
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._known.bytes or 0}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        # Out of here meanwhile: what fails or hangs is dropped, and opened anew.
        file, self._file = self._file, None
        held = [file]
        self._file, content = persist(
            self._url,
            lambda: self._attempt(held.pop() if held else None, len(view)),
            self._patience,
            self._until,
        )
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _attempt(self, file: Any, wanted: int) -> tuple[Any, bytes]:
        position, size = self._position, self._known.bytes
        wanted = wanted if size is None else min(wanted, size - position)
        if wanted <= 0:
            return file, b""
        file = self._opened() if file is None else file
        try:
            content = self._read_at(file, position, wanted)
            if not content and size is not None:
                msg = f"it ended at byte {position} of {size}"
                raise EOFError(msg)
        except Exception as error:
            file.close()
            if not isinstance(error, ValueError) or "range requests" not in str(error):
                raise
            self._ranges = False  # a server that sends the whole file or nothing
            return self._attempt(None, wanted)
        return file, content

    def _opened(self) -> Any:
        filesystem, path = _filesystem(self._url)
        self._require_unchanged()
        if not self._ranges or (self._known.bytes is None and _is_http(self._url)):
            # The size only keeps fsspec from asking for it again.
            return filesystem.open(path, "rb", block_size=0, size=self._known.bytes or 1)
        return filesystem.open(path, "rb", block_size=BLOCK)

    def _require_unchanged(self) -> None:
        if self._position:
            now = _remote_file(self._url)
            if (now.bytes, now.version) != (self._known.bytes, self._known.version):
                msg = f"{mask_secrets(self._url)}: it was changed while it was read; begin again"
                raise DataError(msg)

    @staticmethod
    def _read_at(file: Any, position: int, wanted: int) -> bytes:
        try:
            file.seek(position)
        except ValueError:  # one that only goes forward
            if file.tell() > position:
                raise OSError("the place lies behind: open again") from None
            while file.tell() < position:
                if not file.read(min(BLOCK, position - file.tell())):
                    raise EOFError(f"it ended at byte {file.tell()}") from None
        content = file.read(wanted)
        return bytes(content)


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url, **(_http_options() if _is_http(url) else {}))
    except ValueError as error:
        msg = f"{mask_secrets(url)}: {error}; expected a path, or a URL that fsspec can read"
        raise DataError(msg) from None
    return filesystem, path


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _http_options() -> dict[str, Any]:
    """Bytes as they are stored, the proxies and passwords of this machine, and time-outs."""
    import aiohttp
    from fsspec.config import conf

    seconds = Patience.from_environment().timeout
    ours = {
        "auto_decompress": False,
        "raise_for_status": True,  # fsspec's own way leaves the connection open
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
        "trust_env": True,
    }
    return {"client_kwargs": ours | conf.get("http", {}).get("client_kwargs", {})}


def _remote_file(url: str) -> RemoteFile:
    filesystem, path = _filesystem(url)
    filesystem.invalidate_cache()
    facts = filesystem.info(path)
    if facts["type"] != "file":
        msg = f"{mask_secrets(url)}: a folder; expected a file"
        raise DataError(msg)
    return _described(url, posixpath.basename(path.rstrip("/")), facts)


def _described(url: str, name: str, facts: dict[str, Any]) -> RemoteFile:
    version = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), None)
    return RemoteFile(url, name, facts.get("size"), version)


def _renamed(file: RemoteFile, name: str) -> RemoteFile:
    return RemoteFile(file.url, name, file.bytes, file.version)


def _listed(location: str) -> list[RemoteFile]:
    filesystem, path = _filesystem(location)
    filesystem.invalidate_cache()
    if any(mark in path for mark in "*["):
        first = min(path.index(mark) for mark in "*[" if mark in path)
        root = path[: path.rindex("/", 0, first) + 1]
        try:
            found = filesystem.glob(path, detail=True)
        except ValueError as error:
            msg = f"{mask_secrets(location)}: {error}"
            raise DataError(msg) from None
    elif not location.endswith("/") and filesystem.isfile(path):
        return [_remote_file(location)]
    else:
        root = path.rstrip("/") + "/"
        found = filesystem.find(path, detail=True)
    return [
        _described(filesystem.unstrip_protocol(name), name.removeprefix(root), facts)
        for name, facts in found.items()
        if facts["type"] == "file" and name.startswith(root)
    ]
