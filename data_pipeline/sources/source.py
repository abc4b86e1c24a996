"""What every source of documents offers, and how its work is shared by several processes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Document

Locate = Callable[[str], Path]
"""A location in a recipe (a path, or ``stage:NAME/rest``) -> the path behind it; DataError."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something in a source that is no document.

    Attributes:
        where: ``file:line`` or the like.
        reason: what is wrong with it, and what was expected.
    """

    where: str
    reason: str


class Part(Protocol):
    """A share of a source: small enough for one process, picklable, read without the others."""

    def read(self) -> Iterator[Document | Rejected]:
        """Its documents in order, and what had to be left out."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, and the name it has there whatever machine it lies on."""

    path: Path
    name: str


class DocumentSource(Config, ABC):
    """Base of the sources' configs. The parts in order are the documents in order."""

    @property
    def rejected_at_most(self) -> int | None:
        """How many rejected documents are borne; None: any number."""
        return 0

    @property
    def locations(self) -> Sequence[str]:
        """The locations it reads, as the recipe gives them."""
        return ()

    @abstractmethod
    def files(self, locate: Locate) -> list[SourceFile]:
        """The files it reads, in order; DataError when there are none."""

    def check(self, locate: Locate) -> None:
        """DataError when there is nothing to read, as far as that is told quickly."""
        files = self.files(locate)
        if not any(file.path.stat().st_size for file in files):
            also = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            msg = f"{files[0].path}{also}: empty; a corpus needs at least one document"
            raise DataError(msg)

    @abstractmethod
    def parts(self, locate: Locate) -> list[Part]:
        """Its documents in shares that several processes can read at once."""

    def documents(self, locate: Locate) -> Iterator[Document]:
        """All its documents, in order; DataError at the first rejected one too many."""
        rejected = 0
        for part in self.parts(locate):
            for item in part.read():
                if isinstance(item, Document):
                    yield item
                else:
                    rejected += 1
                    self.bear(rejected, item)

    def bear(self, rejected: int, last: Rejected) -> None:
        """DataError when so many rejected documents are too many; the message names the last."""
        most = self.rejected_at_most
        if most is not None and rejected > most:
            budget = f" (the {rejected}th rejected; max_rejected is {most})" if most else ""
            msg = f"{last.where}: {last.reason}{budget}; repair it, or raise max_rejected"
            raise DataError(msg)

    def digest(self, locate: Locate) -> str:
        """Hex sha256 over names and contents of all its files."""
        total = hashlib.sha256()
        for file in self.files(locate):
            with file.path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.name}\x00{content}\n".encode())
        return total.hexdigest()


def files_below(path: Path, suffixes: Sequence[str]) -> list[SourceFile]:
    """``path`` itself, or all files below it that end in one of ``suffixes``, by name."""
    if path.is_file():
        if path.name.endswith(tuple(suffixes)):
            return [SourceFile(path, path.name)]
        msg = f"{path}: expected a file ending in {', '.join(suffixes)}"
        raise DataError(msg)
    found = sorted(p for p in path.rglob("*") if p.name.endswith(tuple(suffixes)) and p.is_file())
    if not found:
        msg = f"{path}: no file ending in {', '.join(suffixes)} below it"
        raise DataError(msg)
    return [SourceFile(p, p.relative_to(path).as_posix()) for p in found]
