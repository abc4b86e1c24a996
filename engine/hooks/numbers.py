"""Where numbers go: files of one JSON object a line that a resumed run continues seamlessly."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from configs.errors import DataError
from engine.checkpoint.disk import DiskError, disk_errors

BEFORE_ALL = -1
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the numbers of a step, as rank 0 has them."""

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """``kind``: ``train``, ``validation``...; ``numbers`` nest by name and hold JSON values."""
        ...


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object as a file that is there whole or not at all; ResourceError from the disk."""
    temporary = path.with_name(f".tmp-{path.name}")
    with disk_errors(path):
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")
        temporary.replace(path)


class JsonLines:
    """An append-only file of objects that carry a ``step``.

    A line that the disk refuses is kept and written before the next one: whether a run goes on
    without room is decided where its state is saved, which ``sync`` belongs to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[bytes] = []

    def cut_after(self, step: int) -> None:
        """Drop the lines of later steps (BEFORE_ALL: every line), and a last one that a kill cut.

        Raises:
            DataError: a line before the last is no JSON object with a step.
            ResourceError: the disk failed.
        """
        self._unwritten.clear()
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            kept = [line for number, line in enumerate(lines) if self._stays(lines, number, step)]
            temporary = self.path.with_name(f".tmp-{self.path.name}")
            with temporary.open("wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)

    def append(self, numbers: Mapping[str, Any]) -> None:
        """Add a line; a kill of the process afterwards does not lose it, if there was room."""
        self._unwritten.append((json.dumps(numbers, allow_nan=False) + "\n").encode())
        try:
            self._write()
        except DiskError as error:
            if len(self._unwritten) == 1:
                _log.warning("numbers wait for room: %s", error)

    def sync(self) -> None:
        """Make what was appended survive a loss of power; DiskError if there is no room for it."""
        self._write()
        if not self.path.exists():
            return
        with disk_errors(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _write(self) -> None:
        """All lines that are not there yet, or none of them."""
        lines = b"".join(self._unwritten)
        if not lines:
            return
        with disk_errors(self.path, len(lines)), self.path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(start)
                raise
        self._unwritten.clear()

    def _stays(self, lines: list[bytes], number: int, step: int) -> bool:
        line = lines[number]
        try:
            found = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines) - 1:
                return False
            msg = f"{self.path}:{number + 1}: no JSON object with a step; was the file edited?"
            raise DataError(msg) from None
        return bool(found <= step and line.endswith(b"\n"))
