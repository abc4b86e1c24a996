"""A source that is a file, a folder, a glob or a URL; and one whose files hold records."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from data_pipeline import storage
from data_pipeline.sources import lines
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import SourceFile, files_at
from data_pipeline.sources.lines import LONGEST_RECORD
from data_pipeline.sources.source import JoinedPart, LimitedSource, Locate, Part

FILES_A_PART = 64


class FileSource(LimitedSource, ABC):
    """Base of the sources that read files.

    Attributes:
        path: a file, a folder (read whole, by name), a glob (``data/**/*.jsonl.gz``), or a URL of
            any of these.
        longest_record: a record of more bytes is rejected, without being held in memory.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = ()

    path: str
    longest_record: int = Field(default=LONGEST_RECORD, ge=1)

    @field_validator("path")
    @classmethod
    def _without_secrets(cls, path: str) -> str:
        if storage.is_url(path):
            storage.require_no_secrets(path)
        return path

    @property
    def locations(self) -> Sequence[str]:
        return (self.path,)

    @property
    def suffixes(self) -> Sequence[str]:
        """The ends of the names of the files it reads."""
        return self.SUFFIXES

    def files(self, locate: Locate) -> list[SourceFile]:
        return files_at(self.path, locate, self.suffixes)

    def parts(self, locate: Locate) -> list[Part]:
        return list(joined((file, self.parts_of(file)) for file in self.files(locate)))

    @abstractmethod
    def parts_of(self, file: SourceFile) -> list[Part]:
        """One of its files, in shares; decided by the file alone."""


class RecordSource(FileSource, ABC):
    """Base of the sources whose files hold records with fields.

    Attributes:
        fields: which fields of a record are what.
    """

    fields: Fields = Fields()


def joined(files: Iterable[tuple[SourceFile, list[Part]]]) -> Iterator[Part]:
    """The parts of files in order, small files together in one."""
    held: list[Part] = []
    size = 0
    for file, parts in files:
        known = file.size()
        if len(parts) != 1 or known is None or known >= lines.PART_BYTES:
            yield from _joined(held)
            yield from parts
            held, size = [], 0
            continue
        held += parts
        size += known
        if size >= lines.PART_BYTES or len(held) == FILES_A_PART:
            yield from _joined(held)
            held, size = [], 0
    yield from _joined(held)


def _joined(parts: list[Part]) -> Iterator[Part]:
    if len(parts) > 1:
        yield JoinedPart(tuple(parts))
    else:
        yield from parts
