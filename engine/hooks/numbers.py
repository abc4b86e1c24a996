"""Where numbers go: files of one JSON object a line that a resumed run continues seamlessly."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from configs.errors import DataError
from engine.checkpoint.disk import disk_errors

BEFORE_ALL = -1


class Sink(Protocol):
    """Takes the numbers of a step, as rank 0 has them."""

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """``kind``: ``train`` or ``validation``; ``numbers`` nest by name and hold JSON values."""
        ...


class JsonLines:
    """An append-only file of objects that carry a ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_after(self, step: int) -> None:
        """Drop the lines of later steps (BEFORE_ALL: every line), and a last one that a kill cut.

        Raises:
            DataError: a line before the last is no JSON object with a step.
            ResourceError: the disk failed.
        """
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
        """Add a line; a kill of the process afterwards does not lose it."""
        line = json.dumps(numbers, allow_nan=False) + "\n"
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(line.encode())

    def sync(self) -> None:
        """Make what was appended survive a loss of power."""
        if not self.path.exists():
            return
        with disk_errors(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())

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
