"""How files become a checkpoint: written aside, synced, digested, sealed by a manifest, renamed.

A folder counts only once ``manifest.json`` stands in it and agrees with every file; what a killed
process leaves behind bears another name. No torch is needed to write, verify or describe one.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import xxhash

from configs.errors import CheckpointError
from engine import watchdog
from engine.checkpoint.disk import retried

MANIFEST = "manifest.json"
FORMAT = "onward-checkpoint-2"
ASIDE = ".tmp-"
UNREAD = slice(0)
"""The share of a process that reads no content, but looks at names and sizes."""
_BLOCK = 1 << 22
_UNIQUE = "-[0-9a-f]{8}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was meant to be: its size in bytes and the hex xxh3_128 of its content."""

    name: str
    size: int
    xxh3_128: str


def write_file(path: Path, content: Callable[[], Iterable[bytes | memoryview]]) -> FileRecord:
    """Write and sync a new file; the digest is of the bytes given, not of what the disk kept.

    ``content`` is called again for a new try: a file whose sync failed may have lost any page,
    so nothing of it is used.
    """
    return retried(path, lambda: _write_once(path, content()))


def _write_once(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    digest = xxhash.xxh3_128()
    size = 0
    path.unlink(missing_ok=True)
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            _write_all(file, memoryview(chunk))
            watchdog.alive()
        os.fsync(file.fileno())
    return FileRecord(path.name, size, digest.hexdigest())


def _write_all(file: RawIOBase, rest: memoryview) -> None:
    while rest:
        rest = rest[file.write(rest) :]


def write_json(path: Path, value: Mapping[str, Any]) -> FileRecord:
    """A JSON file for people and programs; CheckpointError if the value is not JSON."""
    try:
        text = _rendered(value)
    except (TypeError, ValueError) as error:
        msg = f"{path.name}: state that JSON cannot hold: {error}"
        raise CheckpointError(msg) from error
    return write_file(path, lambda: [text])


def _rendered(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """A folder whose name survives a loss of power; one that is there already stays."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


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
    remove(hide(folder))


def hide(folder: Path) -> Path:
    """Take its name from a finished folder, for good; returns where it lies now."""
    hidden = folder.parent / f"{ASIDE}{folder.name}-{uuid.uuid4().hex[:8]}"
    folder.rename(hidden)
    sync_folder(folder.parent)
    return hidden


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
    write_file(temporary, lambda: [text.encode()])
    temporary.replace(path)
    sync_folder(path.parent)


def seal(folder: Path, name: str, facts: Mapping[str, Any], files: Iterable[FileRecord]) -> None:
    """Write ``manifest.json``: the facts, every file's size and digest, and its own digest.

    ``name`` is the one that the folder is going to bear; under another it is not believed.
    """
    body = {"format": FORMAT, "name": name, **facts, "files": [asdict(file) for file in files]}
    write_json(folder / MANIFEST, {**body, "digest": _own_digest(body)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, believed only if its own digest agrees; CheckpointError with the reason."""
    path = folder / MANIFEST
    if path.is_symlink():
        msg = f"{path}: leads out of the checkpoint"
        raise CheckpointError(msg)
    try:
        text = retried(path, path.read_bytes)
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
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        msg = f"{path}: damaged: no longer the JSON that was written"
        raise CheckpointError(msg) from None
    if digest != _own_digest(body) or text != as_written:
        msg = f"{path}: damaged: its content does not agree with its own digest"
        raise CheckpointError(msg)
    if body.get("format") != FORMAT:
        msg = f"{path}: format is {body.get('format')!r}, expected {FORMAT!r}"
        raise CheckpointError(msg)
    return dict(body)


def files_of(manifest: Mapping[str, Any], folder: Path) -> list[FileRecord]:
    """The files that a manifest names; CheckpointError if one lies elsewhere, or it is no list."""
    try:
        files = [FileRecord(**entry) for entry in manifest["files"]]
        plain = [is_plain(file.name) and file.size >= 0 for file in files]
    except (KeyError, TypeError):
        msg = f"{folder / MANIFEST}: names no files"
        raise CheckpointError(msg) from None
    if not all(plain):
        msg = f"{folder / MANIFEST}: {files[plain.index(False)].name!r} leads out of the checkpoint"
        raise CheckpointError(msg)
    return files


def is_plain(name: object) -> bool:
    """Whether it is the name of a file in a folder, and no way to anywhere else."""
    return (
        isinstance(name, str)
        and Path(name).name == name
        and name not in {"", ".."}
        and "\0" not in name
    )


def problems_of(folder: Path, share: slice = slice(None)) -> list[str]:
    """What is wrong with a checkpoint, a line for each file; empty if it is intact.

    ``share`` picks the files whose content this process reads, so that several can split them;
    ``UNREAD`` picks none. All else is looked at by everybody.
    """
    try:
        return _problems_of(folder, share)
    except OSError as error:
        return [f"{error.filename or folder}: cannot be read: {error.strerror}"]


def _problems_of(folder: Path, share: slice) -> list[str]:
    if folder.is_symlink() or not folder.is_dir():
        return [f"{folder}: not a folder of its own (a link, a file, or nothing)"]
    try:
        manifest = read_manifest(folder)
        files = files_of(manifest, folder)
    except CheckpointError as error:
        return [str(error)]
    if manifest.get("name") != folder.name:
        return [f"{folder}: renamed: it was saved as {manifest.get('name')!r}"]
    expected = {MANIFEST, *(file.name for file in files)}
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    found = [f"{folder / name}: not part of this checkpoint" for name in sorted(present - expected)]
    found += (problem for file in files if (problem := _shape_problem(folder, file)))
    return found or [problem for file in files[share] if (problem := content_problem(folder, file))]


def _shape_problem(folder: Path, file: FileRecord) -> str | None:
    path = folder / file.name
    if path.is_symlink():
        return f"{path}: leads out of the checkpoint"
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != file.size:
        return f"{path}: {size} bytes, expected {file.size}"
    return None


def content_problem(folder: Path, file: FileRecord) -> str | None:
    """What is wrong with the content of a file; None if it has the recorded digest."""
    path = folder / file.name
    try:
        found = retried(path, lambda: _digest(path))
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if found != file.xxh3_128:
        return f"{path}: damaged: xxh3_128 is {found}, expected {file.xxh3_128}"
    return None


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
            watchdog.alive()
    return digest.hexdigest()


def _own_digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()
