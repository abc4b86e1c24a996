"""What every source of documents offers, and how its work is shared by several processes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Document
from data_pipeline.sources.files import SourceFile

Locate = Callable[[str], Path]
"""A location in a recipe (a path, or ``stage:NAME/rest``) -> the path behind it; DataError."""

MaxRejected = (
    Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(strict=True, ge=0, lt=1)]
)
"""How many rejected records are borne (an integer), or which share of all records (below 1)."""


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
class JoinedPart:
    """Small parts that are read one behind the other, so that a million files are few tasks."""

    parts: tuple[Part, ...]

    def read(self) -> Iterator[Document | Rejected]:
        for part in self.parts:
            yield from part.read()


class DocumentSource(Config, ABC):
    """Base of the sources' configs. The parts in order are the documents in order."""

    @property
    def rejected_at_most(self) -> int | None:
        """How many rejected documents are borne; None: any number, but see the share."""
        return 0

    @property
    def rejected_share(self) -> float | None:
        """Which share of all records may be rejected ones; None: no share is set."""
        return None

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
        if all(file.size() == 0 for file in files):
            also = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            msg = f"{files[0]}{also}: empty; a corpus needs at least one document"
            raise DataError(msg)

    @abstractmethod
    def parts(self, locate: Locate) -> list[Part]:
        """Its documents in shares that several processes can read at once."""

    def documents(self, locate: Locate) -> Iterator[Document]:
        """All its documents, in order; DataError when too much was rejected."""
        read = rejected = 0
        last = None
        for part in self.parts(locate):
            for item in part.read():
                read += 1
                if isinstance(item, Document):
                    yield item
                else:
                    rejected, last = rejected + 1, item
                    self.bear(rejected, item)
        if last is not None:
            self.bear(rejected, last, read)

    def bear(self, rejected: int, last: Rejected, read: int | None = None) -> None:
        """DataError when so much rejected is too much; the message names the last.

        Args:
            rejected: how many were rejected so far.
            last: the last of them.
            read: how many records the whole source has, good and rejected; None as long as that
                is not known. A share is compared only then, a count always.
        """
        most, share = self.rejected_at_most, self.rejected_share
        if most is not None and rejected > most:
            budget = f" (rejected: {rejected}; max_rejected is {most})" if most else ""
        elif share is not None and read is not None and rejected > share * read:
            budget = f" (the last of {rejected} rejected among {read}; max_rejected is {share})"
        else:
            return
        msg = f"{last.where}: {last.reason}{budget}; repair it, or raise max_rejected"
        raise DataError(msg)

    def digest(self, locate: Locate) -> str:
        """Hex sha256 over the digests of all its files, in order."""
        total = hashlib.sha256()
        for file in self.files(locate):
            total.update(f"{file.digest()}\n".encode())
        return total.hexdigest()


class LimitedSource(DocumentSource, ABC):
    """A source whose user says how much of it may be malformed.

    Attributes:
        max_rejected: so many malformed records are left out and listed, one more is an error;
            below 1 and with a decimal point, a share of all records (``0.001``).
    """

    max_rejected: MaxRejected = 0

    @property
    def rejected_at_most(self) -> int | None:
        most = self.max_rejected
        return most if isinstance(most, int) else None

    @property
    def rejected_share(self) -> float | None:
        most = self.max_rejected
        return most if isinstance(most, float) else None
