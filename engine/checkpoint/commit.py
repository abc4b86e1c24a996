"""How files become a checkpoint: written aside, synced, digested, sealed by a manifest, renamed.

A folder counts only once ``manifest.json`` stands in it and agrees with every file; what a killed
process leaves behind bears another name. No torch is needed to write, verify or describe one.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from configs.errors import CheckpointError, ResourceError

MANIFEST = "manifest.json"
FORMAT = "onward-checkpoint-1"
ASIDE = ".tmp-"
_BLOCK = 1 << 22
_UNIQUE = "-[0-9a-f]{8}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was meant to be: its size in bytes and the hex xxh3_128 of its content."""

    name: str
    size: int
    xxh3_128: str


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError into a ResourceError that names the path and the free bytes."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else path
        raise ResourceError(_disk_message(where, error, needed)) from error


def require_space(folder: Path, needed: int) -> None:
    """ResourceError if fewer than ``needed`` bytes are free where ``folder`` lies."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        msg = (
            f"{folder}: no space: {needed} bytes are needed, {free} bytes are free; "
            "make room or keep fewer checkpoints, then run again"
        )
        raise ResourceError(msg)


def free_bytes(path: Path) -> int | None:
    """Bytes free on the file system of ``path`` or its nearest existing parent."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def _disk_message(path: Path, error: OSError, needed: int | None) -> str:
    need = "" if needed is None else f"{needed} bytes are needed, "
    return (
        f"{path}: {error.strerror or error}: {need}{free_bytes(path)} bytes are free there; "
        "nothing under a final name was changed; see to the disk, then run again"
    )


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write and sync a new file; the digest is of the bytes given, not of what the disk kept."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(path.name, size, digest.hexdigest())


def write_json(path: Path, value: Mapping[str, Any]) -> FileRecord:
    """A JSON file for people and programs; CheckpointError if the value is not JSON."""
    try:
        text = _rendered(value)
    except (TypeError, ValueError) as error:
        msg = f"{path.name}: state that JSON cannot hold: {error}"
        raise CheckpointError(msg) from error
    return write_file(path, [text])


def _rendered(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside(final: Path) -> Path:
    """A new empty folder beside ``final``, under a name that no reader takes for a result."""
    folder = final.parent / f"{ASIDE}{final.name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Delete what a killed writer of ``name`` (None: of anything) left in ``parent``."""
    written = re.compile(re.escape(ASIDE) + (".*" if name is None else re.escape(name) + _UNIQUE))
    for entry in sorted(parent.iterdir()):
        if written.fullmatch(entry.name):
            remove(entry)


def remove(entry: Path) -> None:
    """Delete a file, a link (never what it points to) or a folder."""
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(entry)


def retire(folder: Path) -> None:
    """Delete a finished folder so that a half-deleted one never bears its name."""
    hidden = folder.parent / f"{ASIDE}{folder.name}-{uuid.uuid4().hex[:8]}"
    folder.rename(hidden)
    sync_folder(folder.parent)
    remove(hidden)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its name, for good; whatever bore the name before is deleted."""
    sync_folder(temporary)
    if final.is_symlink() or final.exists():
        retire(final)
    temporary.rename(final)
    sync_folder(final.parent)


def write_hint(path: Path, text: str) -> None:
    """Replace a small text file at once. It is for people: nothing reads it back as truth."""
    temporary = path.parent / f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}"
    write_file(temporary, [text.encode()])
    temporary.replace(path)
    sync_folder(path.parent)


def seal(folder: Path, facts: Mapping[str, Any], files: Iterable[FileRecord]) -> None:
    """Write ``manifest.json``: the facts, every file's size and digest, and its own digest."""
    body = {"format": FORMAT, **facts, "files": [asdict(file) for file in files]}
    write_json(folder / MANIFEST, {**body, "digest": _own_digest(body)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, believed only if its own digest agrees; CheckpointError with the reason."""
    path = folder / MANIFEST
    if path.is_symlink():
        msg = f"{path}: leads out of the checkpoint"
        raise CheckpointError(msg)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        msg = f"{path}: missing; the save was never finished"
        raise CheckpointError(msg) from None
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise CheckpointError(msg) from error
    try:
        body = json.loads(text)
        as_written = _rendered(body)
        digest = body.pop("digest")
    except (ValueError, AttributeError, KeyError, TypeError):
        msg = f"{path}: damaged: no longer the JSON that was written"
        raise CheckpointError(msg) from None
    if digest != _own_digest(body) or text != as_written:
        msg = f"{path}: damaged: its content does not agree with its own digest"
        raise CheckpointError(msg)
    if body.get("format") != FORMAT:
        msg = f"{path}: format is {body.get('format')!r}, expected {FORMAT!r}"
        raise CheckpointError(msg)
    return dict(body)


def problems_of(folder: Path, share: slice = slice(None)) -> list[str]:
    """What is wrong with a checkpoint, a line for each file; empty if it is intact.

    ``share`` picks the files whose content this process reads, so that several can split them.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [f"{folder}: not a folder of its own (a link, a file, or nothing)"]
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    files = [FileRecord(**entry) for entry in manifest["files"]]
    expected = {MANIFEST, *(file.name for file in files)}
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    found = [f"{folder / name}: not part of this checkpoint" for name in sorted(present - expected)]
    found += (problem for file in files if (problem := _shape_problem(folder, file)))
    return found or [
        problem for file in files[share] if (problem := _content_problem(folder, file))
    ]


def _shape_problem(folder: Path, file: FileRecord) -> str | None:
    path = folder / file.name
    if Path(file.name).name != file.name or path.is_symlink():
        return f"{path}: leads out of the checkpoint"
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != file.size:
        return f"{path}: {size} bytes, expected {file.size}"
    return None


def _content_problem(folder: Path, file: FileRecord) -> str | None:
    path = folder / file.name
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if digest.hexdigest() != file.xxh3_128:
        return f"{path}: damaged: xxh3_128 is {digest.hexdigest()}, expected {file.xxh3_128}"
    return None


def _own_digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()
