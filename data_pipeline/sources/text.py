"""Plain text files: one document a file, or documents separated by blank lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources.source import (
    DocumentSource,
    Locate,
    Part,
    Rejected,
    SourceFile,
    files_below,
)

FILES_A_PART = 64


class TextSource(DocumentSource):
    """Reads UTF-8 text.

    Attributes:
        path: a file, or a folder whose files are read.
        suffix: of the files that are read.
        documents_are: whole files, or what lies between blank lines.
        groups_are: what stays on one side of a split. ``documents`` lets the paragraphs of one
            file stand on both sides.
    """

    name: Literal["text"] = "text"
    path: str
    suffix: str = ".txt"
    documents_are: Literal["files", "paragraphs"] = "files"
    groups_are: Literal["files", "documents"] = "files"

    @property
    def locations(self) -> Sequence[str]:
        return (self.path,)

    def files(self, locate: Locate) -> list[SourceFile]:
        return files_below(locate(self.path), (self.suffix,))

    def parts(self, locate: Locate) -> list[Part]:
        files = self.files(locate)
        return [
            TextPart(tuple(files[at : at + FILES_A_PART]), self.documents_are, self.groups_are)
            for at in range(0, len(files), FILES_A_PART)
        ]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Some of the files."""

    files: tuple[SourceFile, ...]
    documents_are: Literal["files", "paragraphs"]
    groups_are: Literal["files", "documents"]

    def read(self) -> Iterator[Document | Rejected]:
        for file in self.files:
            if self.documents_are == "files":
                text = "".join(_lines(file))
                if text.strip():
                    yield Document(text, file.name, file.name)
            else:
                yield from self._paragraphs(file)

    def _paragraphs(self, file: SourceFile) -> Iterator[Document]:
        held: list[str] = []
        first = 1
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                first = first if held else number
                held.append(line)
            elif held:
                yield self._paragraph(file, first, held)
                held = []
        if held:
            yield self._paragraph(file, first, held)

    def _paragraph(self, file: SourceFile, line: int, held: list[str]) -> Document:
        name = f"{file.name}:{line}"
        return Document("".join(held), name, file.name if self.groups_are == "files" else name)


def _lines(file: SourceFile) -> Iterator[str]:
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                msg = (
                    f"{file.path}:{number}: not UTF-8 at byte {error.start} of the line "
                    f"({line[error.start]:#04x}); convert the file to UTF-8"
                )
                raise DataError(msg) from None
