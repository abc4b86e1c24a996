"""JSON and JSON lines on disk: a file has its final name only once it is complete."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from data_pipeline.whole_file import write_whole


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file or none; ResourceError naming it where it cannot be written."""
    write_whole(path, content)


def write_text(path: Path, content: str) -> None:
    """``write_bytes`` of UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; a number that JSON has not got (NaN) is a ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One object a line."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_json(path: Path) -> Any:
    """The value in a JSON file; DataError naming the file if it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{path}: no such file; has the stage that makes it been run?"
        raise DataError(msg) from None
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not JSON: {error}"
        raise DataError(msg) from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; DataError with file:line for a malformed one."""
    records = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    records.append(_parse(line, f"{path}:{number}"))
    except FileNotFoundError:
        msg = f"{path}: no such file; has the stage that makes it been run?"
        raise DataError(msg) from None
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8: {error}"
        raise DataError(msg) from None
    return records


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: not JSON: {getattr(error, 'msg', error)}"
        raise DataError(msg) from None
    if not isinstance(value, dict):
        msg = f"{where}: expected a JSON object, found {type(value).__name__}"
        raise DataError(msg)
    return value


def digest_of_files(paths: Iterable[Path]) -> str:
    """sha256 (hex) over names and contents, whatever the order they are given in."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    return total.hexdigest()
