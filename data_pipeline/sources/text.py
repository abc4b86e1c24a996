"""Plain text files: one document a file, or documents separated by blank lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import Field

from data_pipeline.example import Document
from data_pipeline.sources import lines
from data_pipeline.sources.file_source import FileSource
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import BOM, Overlong, Span, is_packed, lines_of
from data_pipeline.sources.source import Part, Rejected

Encoding = Literal["utf-8", "gb18030", "latin-1"]
"""Encodings in which the byte of a line end stands for nothing else."""
BYTE_ORDER_MARKS = {"utf-8": BOM, "gb18030": "\ufeff".encode("gb18030"), "latin-1": b""}
SAID = {"utf-8": "UTF-8", "gb18030": "GB18030", "latin-1": "Latin-1"}
GAP = re.compile(rb"\n[ \t\r\v\f]*\n")
"""A line end and a blank line. Other space may be blank too; it is no place for a cut then."""


class TextSource(FileSource):
    """Reads text, packed too if ``suffix`` says so (``.txt.gz``).

    Attributes:
        suffix: of the files that are read.
        encoding: of all of them. Bytes that are none in it are rejected, never replaced. Any
            bytes are Latin-1: say it only of files that are.
        documents_are: whole files, or what lies between blank lines.
        groups_are: what stays on one side of a split. ``documents`` lets the paragraphs of one
            file stand on both sides.
    """

    name: Literal["text"] = "text"
    suffix: str = Field(default=".txt", min_length=1)
    encoding: Encoding = "utf-8"
    documents_are: Literal["files", "paragraphs"] = "files"
    groups_are: Literal["files", "documents"] = "files"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (self.suffix,)

    def parts_of(self, file: SourceFile) -> list[Part]:
        whole = TextPart(
            file,
            Span(),
            self.encoding,
            self.longest_record,
            self.documents_are,
            self.groups_are,
        )
        if self.documents_are == "files":
            return [whole]
        return [replace(whole, span=span) for span in paragraph_spans(file)]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A file, or some of its paragraphs."""

    file: SourceFile
    span: Span
    encoding: Encoding
    longest: int
    documents_are: Literal["files", "paragraphs"]
    groups_are: Literal["files", "documents"]

    def read(self) -> Iterator[Document | Rejected]:
        whole = self.documents_are == "files"
        held = _Held()
        mark = BYTE_ORDER_MARKS[self.encoding]
        for number, line in lines_of(self.file, self.span, self.longest, mark):
            if whole or isinstance(line, Overlong) or not self._is_blank(line):
                held.add(number, line, self.longest)
            else:
                yield from self._finish(held)
                held = _Held()
        yield from self._finish(held)

    def _is_blank(self, line: bytes) -> bool:
        content = line.strip()
        if not content or 0x20 < content[0] < 0x80:
            return not content
        return not content.decode(self.encoding, "replace").strip()

    def _finish(self, held: "_Held") -> Iterator[Document | Rejected]:
        if held.size > len(held.content):
            reason = Overlong(held.size).reason(self.longest)
            yield Rejected(f"{self.file}:{held.line}", reason)
            return
        try:
            text = held.content.decode(self.encoding)
        except UnicodeDecodeError as error:
            yield self._undecodable(held, error.start)
            return
        if text.strip():
            name = self.file.name
            place = name if self.documents_are == "files" else f"{name}:{held.line}"
            yield Document(text, place, name if self.groups_are == "files" else place)

    def _undecodable(self, held: "_Held", at: int) -> Rejected:
        line = held.line + held.content.count(b"\n", 0, at)
        column = at - (held.content.rfind(b"\n", 0, at) + 1)
        return Rejected(
            f"{self.file}:{line}",
            f"not {SAID[self.encoding]} at byte {column} of the line "
            f"({held.content[at]:#04x}); convert the file, or say its `encoding`",
        )


@dataclass(slots=True)
class _Held:
    """The lines of a document so far; let go when they are too many.

    Attributes:
        size: their bytes, held or not.
        line: number of the first.
    """

    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    line: int = 0

    def add(self, number: int, line: bytes | Overlong, longest: int) -> None:
        self.line = self.line or number
        self.size += line.size if isinstance(line, Overlong) else len(line)
        if self.size > longest:
            self.content.clear()
        elif isinstance(line, bytes):
            self.content += line


def paragraph_spans(file: SourceFile) -> Iterator[Span]:
    """Spans of about ``PART_BYTES`` that end with a blank line; one of a packed or remote file."""
    if file.path is None or is_packed(file):
        yield Span()
        return
    start, line, counted = 0, 1, 0
    offset = 0
    with file.open() as stream:
        while block := stream.read(lines.BLOCK):
            cut = 0
            if offset + len(block) - start >= lines.PART_BYTES:
                cut = max((gap.end() for gap in GAP.finditer(block)), default=0)
            if cut:
                counted += block.count(b"\n", 0, cut)
                yield Span(start, offset + cut, line)
                start, line, counted = offset + cut, line + counted, 0
            counted += block.count(b"\n", cut)
            offset += len(block)
    if offset > start:
        yield Span(start, offset, line)
