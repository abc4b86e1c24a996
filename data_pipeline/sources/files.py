"""The files behind a location: one file, a folder, a glob, here or behind a URL."""

import glob
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from configs.errors import DataError
from data_pipeline import storage

if TYPE_CHECKING:
    from data_pipeline.sources.source import Locate

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, and the name it has there whatever machine it lies on.

    Attributes:
        location: its path, or its URL as text.
        name: relative to the folder or glob that was asked for.
        listed: its bytes as a remote listing tells them; None for local files, or if not told.
    """

    location: Path | str
    name: str
    listed: int | None = None

    def __str__(self) -> str:
        """As messages show it: secrets in a URL are masked."""
        return storage.mask_secrets(str(self.location))

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None for a URL."""
        return self.location if isinstance(self.location, Path) else None

    def size(self) -> int | None:
        """Its bytes; None where a remote does not tell."""
        return self.location.stat().st_size if isinstance(self.location, Path) else self.listed

    def open(self) -> IO[bytes]:
        """Its bytes as they are stored, for reading; DataError naming it."""
        return storage.open_binary(self.location)

    def digest(self) -> str:
        """Hex sha256 over its name and content; reads all of it."""
        total = hashlib.sha256(f"{self.name}\x00".encode())
        with self.open() as stream:
            while block := stream.read(BLOCK):
                total.update(block)
        return total.hexdigest()

    def stamp(self) -> dict[str, str | int | None]:
        """What changes when the content does, without reading it: size and time, or ETag.

        Of a remote that tells no version, no two are alike.
        """
        if isinstance(self.location, str):
            known = storage.remote_file(self.location)
            return {"size": known.bytes, "version": known.version or secrets.token_hex(16)}
        status = self.location.stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def files_at(location: str, locate: "Locate", suffixes: Sequence[str]) -> list[SourceFile]:
    """The file a location names, or all in the folder or glob that end in a suffix, by name.

    Links to folders are followed.

    Args:
        location: path, folder or glob (``*``, ``?``, ``[...]``, ``**`` for any depth), also with
            ``stage:NAME`` before it, or a URL of any of these.
        locate: gives the path behind a local location.
        suffixes: the ends of names that are taken.

    Raises:
        DataError: nothing is there, or nothing that ends so; a folder cannot be looked into, a link
            leads nowhere, or a name is not UTF-8.
    """
    if storage.is_url(location):
        return _remote(location, tuple(suffixes))
    folder, pattern = _split_glob(location, locate)
    if pattern is None:
        return _below(folder, tuple(suffixes))
    # Like a shell, unlike Path.glob: `*` matches no hidden file, a last `**` also files.
    names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207
    found = [name for name in names if _is_file(folder / name)]
    taken = [name for name in found if name.endswith(tuple(suffixes))]
    if not taken:
        but = f"; {len(found)} others match" if found else ""
        msg = f"{location}: no file ending in {', '.join(suffixes)} matches{but}"
        raise DataError(msg)
    return [_local(folder / name, PurePosixPath(name).as_posix()) for name in taken]


def _split_glob(location: str, locate: "Locate") -> tuple[Path, str | None]:
    """(folder, pattern below it), or (path, None) for what is no glob or exists by that name."""
    if not glob.has_magic(location):
        return locate(location), None
    steps = location.split("/")
    first = next(at for at, step in enumerate(steps) if glob.has_magic(step))
    folder = locate("/".join(steps[:first]) or ("/" if location.startswith("/") else "."))
    pattern = "/".join(steps[first:])
    literal = folder / pattern
    return (literal, None) if literal.exists() else (folder, pattern)


def _below(path: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    if path.is_file():
        if path.name.endswith(suffixes):
            return [_local(path, path.name)]
        msg = f"{path}: expected a file ending in {', '.join(suffixes)}"
        raise DataError(msg)
    if not path.exists():
        msg = f"{path}: nothing is there"
        raise DataError(msg)
    named = (p for p in _every_file(path) if p.name.endswith(suffixes))
    found = sorted(p for p in named if _is_file(p))
    if not found:
        msg = f"{path}: no file ending in {', '.join(suffixes)} below it"
        raise DataError(msg)
    return [_local(p, p.relative_to(path).as_posix()) for p in found]


def _every_file(top: Path) -> Iterator[Path]:
    """What lies below a folder, through links too; no folder is looked into twice."""
    own = top.resolve()
    seen = {own}

    def is_new(folder: Path) -> bool:
        real = folder.resolve()
        # What a link within the folder leads to is found there under its own name.
        if real in seen or (folder.is_symlink() and real.is_relative_to(own)):
            return False
        seen.add(real)
        return True

    for at, folders, names in os.walk(top, onerror=_refuse_folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(Path(at, name))]
        yield from (Path(at, name) for name in names)


def _refuse_folder(error: OSError) -> None:
    msg = f"{error.filename}: cannot be looked into ({error.strerror})"
    raise DataError(msg)


def _is_file(path: Path) -> bool:
    """Whether it is one; DataError for a link to nothing, whose text would be missed silently."""
    if path.is_symlink() and not path.exists():
        msg = f"{path}: a link that leads nowhere; mend it, or take it away"
        raise DataError(msg)
    return path.is_file()


def _local(path: Path, name: str) -> SourceFile:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        msg = (
            f"{shown}: the name of a file must be UTF-8, since documents are named by it; rename it"
        )
        raise DataError(msg) from None
    return SourceFile(path, name)


def _remote(url: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    listed = storage.list_files(url)
    taken = [file for file in listed if _plain(file.name).endswith(suffixes)]
    if not taken:
        but = f"; {len(listed)} others are there" if listed else ""
        msg = f"{storage.mask_secrets(url)}: no file ending in {', '.join(suffixes)}{but}"
        raise DataError(msg)
    return [SourceFile(file.url, _plain(file.name), file.bytes) for file in taken]


def _plain(name: str) -> str:
    """A name without the query that a web address may have."""
    return name.partition("?")[0]
