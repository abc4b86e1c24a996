"""Files that are written to line by line and never grow beyond a bound."""

import os
from pathlib import Path

LIMIT = 32 * 2**20
"""Bytes of a log; once it has as many they become ``NAME.1``, and it begins anew."""


def append_line(path: Path, text: str) -> str:
    """Add to a log, whose folder is made if it is not there; what is wrong, empty if nothing is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
            is_large = file.tell() > LIMIT
        if is_large:
            path.replace(aside(path))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def aside(path: Path) -> Path:
    """Where the earlier part of a log lies."""
    return path.with_name(f"{path.name}.1")
