"""The files of shards that this process holds open: a bounded number, whatever it reads."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.errors import Cause, DataError, ResourceError
from data_pipeline.disk import TOO_MANY
from data_pipeline.shards.choices import Mode
from data_pipeline.shards.manifest import ShardRecord, Suffix

T = TypeVar("T")
OPEN_FILES = 256
"""So many are open at once: each holds a file descriptor, and pins its shard in the cache."""


class Payload(Protocol):
    """All tokens, or all annotations, of one shard."""

    def whole(self) -> NDArray[Any]:
        """All of it, [tokens]; read-only."""
        ...

    def gather(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Stretches of it end to end, [sum of lengths]."""
        ...


class Mapped:
    """Mapped into memory; what is handed out are views of the map, which keep it open."""

    def __init__(self, file: FileIO, name: str, dtype: np.dtype[Any], tokens: int) -> None:
        self._name = name
        try:
            # The map keeps a duplicate of the descriptor, and with it the pin of a cached file.
            self._tokens = np.memmap(file, dtype, "r", shape=(tokens,))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in TOO_MANY:
                raise
            msg = f"{name}: cannot be mapped into memory ({error}); set mode: pread"
            is_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
            raise DataError(msg, Cause("memory") if is_memory else None) from error
        finally:
            file.close()

    def whole(self) -> NDArray[Any]:
        return self._tokens

    def gather(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        _require_within(self._name, self._tokens.size, starts, lengths)
        found = np.empty(int(lengths.sum()), self._tokens.dtype)
        done = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            found[done : done + length] = self._tokens[start : start + length]
            done += length
        return found


class Described:
    """Read by its descriptor, without a map."""

    def __init__(self, file: FileIO, name: str, dtype: np.dtype[Any], tokens: int) -> None:
        self._file, self._name, self._dtype, self._tokens = file, name, dtype, tokens

    def __del__(self) -> None:
        # Only now: another thread may still be reading when it is closed for a newer one.
        self._file.close()

    def whole(self) -> NDArray[Any]:
        every = self.gather(np.zeros(1, np.int64), np.array([self._tokens], np.int64))
        every.flags.writeable = False
        return every

    def gather(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        _require_within(self._name, self._tokens, starts, lengths)
        ends = np.cumsum(lengths)
        found = np.empty(int(ends[-1]) if len(ends) else 0, self._dtype)
        if not len(found):
            return found
        buffer = found.view(np.uint8).data
        # Stretches that follow each other in the file are one read.
        heads = np.flatnonzero(np.concatenate(([True], starts[1:] != (starts + lengths)[:-1])))
        size = self._dtype.itemsize
        borders = np.append((ends - lengths)[heads], len(found)) * size
        offsets = starts[heads] * size
        for at, (begin, end) in enumerate(pairwise(borders)):
            self._read(buffer[begin:end], int(offsets[at]))
        return found

    def _read(self, into: memoryview, offset: int) -> None:
        while len(into):
            count = os.preadv(self._file.fileno(), [into], offset)
            if not count:
                msg = (
                    f"{self._name}: it ends at byte {offset}; it was cut short after it was opened"
                )
                raise DataError(msg)
            into, offset = into[count:], offset + count


def _require_within(
    name: str, tokens: int, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    if len(starts) and (
        starts.min() < 0 or lengths.min() < 0 or int((starts + lengths).max()) > tokens
    ):
        msg = f"{name}: a stretch beyond its {tokens} tokens"
        raise IndexError(msg)


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which file of which open data set."""

    owner: int
    shard: int
    suffix: Suffix


@dataclass
class OpenFiles:
    """Least recently used files are closed first.

    Attributes:
        most: how many are open at once.
    """

    most: int = OPEN_FILES
    _payloads: "OrderedDict[FileKey, Payload]" = field(default_factory=OrderedDict)
    # A data set that is collected closes its files: in whatever this very thread is doing.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def get(self, key: FileKey, make: Callable[[], Payload]) -> Payload:
        """The open file, or what ``make`` opens, which may take long: others go on meanwhile."""
        with self._lock:
            if key in self._payloads:
                self._payloads.move_to_end(key)
                return self._payloads[key]
        made = self.with_room(make)
        with self._lock:
            kept = self._payloads.setdefault(key, made)
            while len(self._payloads) > self.most:
                self._payloads.popitem(last=False)
        return kept

    def close_oldest(self) -> bool:
        """Close the one that was not used for longest; False when none is open."""
        with self._lock:
            try:
                self._payloads.popitem(last=False)
            except KeyError:
                return False
        return True

    def close_all_of(self, owner: int) -> None:
        """Close the files of a data set."""
        with self._lock:
            for key in [key for key in list(self._payloads) if key.owner == owner]:
                self._payloads.pop(key, None)

    def with_room(self, make: Callable[[], T]) -> T:
        """What ``make`` opens; files are closed while it says that too many are open.

        Raises:
            ResourceError: too many are, though none of these.
        """
        while True:
            try:
                return make()
            except OSError as error:
                if error.errno not in TOO_MANY:
                    raise
                if not self.close_oldest():
                    msg = f"{error.strerror}: no file can be opened; raise the limit (ulimit -n)"
                    raise ResourceError(msg) from error


OPENED = OpenFiles()
"""Of this process."""


def opened(file: FileIO, name: str, record: ShardRecord, form: "Form") -> Payload:
    """The payload behind an open file."""
    kind = Mapped if form.mode == "mmap" else Described
    return kind(file, name, form.dtype, record.tokens)


@dataclass(frozen=True, slots=True)
class Form:
    """How a file is read, and as what."""

    mode: Mode
    dtype: np.dtype[Any]


def readable(path: Path) -> FileIO:
    """A file open for reading, without a buffer; DataError when it cannot be."""
    try:
        return FileIO(path)
    except FileNotFoundError:
        msg = f"{path}: missing, though in the manifest; restore it or prepare the corpus again"
        raise DataError(msg) from None
    except OSError as error:
        if error.errno in TOO_MANY:
            raise
        msg = f"{path}: cannot be read ({error.strerror or error})"
        raise DataError(msg) from error
