"""JSON lines, plain or compressed: one object with a text a line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Document
from data_pipeline.sources.source import (
    DocumentSource,
    Locate,
    Part,
    Rejected,
    SourceFile,
    files_below,
)

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
BLOCK = 1 << 20
PART_BYTES = 16 << 20
LONGEST_SHOWN = 60


class Fields(Config):
    """Which fields of an object are what.

    Attributes:
        text: the field of the text.
        id: the field that names the document; without it the name is ``file:line``.
        group: the field of what must stay on one side of a split; without it, each document.
    """

    text: str = "text"
    id: str | None = None
    group: str | None = None


class JsonlSource(DocumentSource):
    """Reads ``.jsonl``, ``.jsonl.gz`` and ``.jsonl.zst``.

    Attributes:
        path: a file, or a folder of them.
        fields: which fields of an object are what.
        max_rejected: so many malformed lines are left out; one more is an error.
    """

    name: Literal["jsonl"] = "jsonl"
    path: str
    fields: Fields = Fields()
    max_rejected: int = Field(default=0, ge=0)

    @property
    def rejected_at_most(self) -> int | None:
        return self.max_rejected

    @property
    def locations(self) -> Sequence[str]:
        return (self.path,)

    def files(self, locate: Locate) -> list[SourceFile]:
        return files_below(locate(self.path), SUFFIXES)

    def parts(self, locate: Locate) -> list[Part]:
        return [part for file in self.files(locate) for part in _parts_of(file, self.fields)]


@dataclass(frozen=True, slots=True)
class JsonlPart:
    """The lines of a file that lie in a range of its bytes.

    Attributes:
        start: where the range starts in a plain file: at the start of a line.
        stop: where it ends: behind a line end. None: at the end of the file.
        line: number of its first line, from 1.
    """

    file: SourceFile
    fields: Fields
    start: int = 0
    stop: int | None = None
    line: int = 1

    def read(self) -> Iterator[Document | Rejected]:
        for number, line in enumerate(self._lines(), self.line):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.strip():
                yield self._document(number, content)

    def _lines(self) -> Iterator[bytes]:
        path = self.file.path
        try:
            if path.name.endswith(".gz"):
                with gzip.open(path) as stream:
                    yield from stream
            elif path.name.endswith(".zst"):
                yield from _lines_of_blocks(_decompressed(path))
            else:
                yield from _lines_between(path, self.start, self.stop)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            msg = f"{path}: cut short or damaged ({error}); fetch or compress it again"
            raise DataError(msg) from None

    def _document(self, number: int, line: bytes) -> Document | Rejected:
        where = f"{self.file.path}:{number}"
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return Rejected(where, f"not UTF-8 at byte {error.start} of the line")
        except json.JSONDecodeError as error:
            return Rejected(where, f"not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            return Rejected(where, "not readable: nested too deeply")
        if not isinstance(values, dict):
            return Rejected(where, f"expected an object, found {_shown(values)}")
        return self._named(f"{self.file.name}:{number}", where, values)

    def _named(self, place: str, where: str, values: dict[str, Any]) -> Document | Rejected:
        fields = self.fields
        found: dict[str, str] = {}
        for role, name in (("text", fields.text), ("id", fields.id), ("group", fields.group)):
            if name is None:
                continue
            if name not in values:
                known = ", ".join(islice(map(str, values), 8)) or "none"
                return Rejected(where, f"no field '{name}' for the {role} (fields: {known})")
            value = values[name]
            if role != "text" and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str):
                return Rejected(where, f"'{name}' is {_shown(value)}, expected a string")
            found[role] = value
        name = found.get("id", place)
        return Document(found["text"], name, found.get("group", name))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _parts_of(file: SourceFile, fields: Fields) -> Iterator[Part]:
    """A plain file in ranges of about ``PART_BYTES`` that end with a line; a packed one whole."""
    if not file.name.endswith(".jsonl"):
        yield JsonlPart(file, fields)
        return
    start, line, lines = 0, 1, 0
    offset = 0
    with file.path.open("rb") as stream:
        while block := stream.read(BLOCK):
            last = block.rfind(b"\n") + 1
            if last and offset + last - start >= PART_BYTES:
                lines += block.count(b"\n", 0, last)
                yield JsonlPart(file, fields, start, offset + last, line)
                start, line, lines = offset + last, line + lines, block.count(b"\n", last)
            else:
                lines += block.count(b"\n")
            offset += len(block)
    if offset > start:
        yield JsonlPart(file, fields, start, offset, line)


def _lines_between(path: Path, start: int, stop: int | None) -> Iterator[bytes]:
    at = start
    with path.open("rb") as stream:
        stream.seek(start)
        while stop is None or at < stop:
            line = stream.readline()
            if not line:
                return
            at += len(line)
            yield line


def _lines_of_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _decompressed(path: Path) -> Iterator[bytes]:
    """Blocks of a zstandard file; unlike ``stream_reader`` it notices a frame that is cut short."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    with path.open("rb") as stream:
        try:
            while block := stream.read(BLOCK):
                while block:
                    begun = True
                    yield decompressor.decompress(block)
                    block = b""
                    if decompressor.eof:
                        block = decompressor.unused_data
                        decompressor = zstandard.ZstdDecompressor().decompressobj()
                        begun = False
        except zstandard.ZstdError as error:
            msg = f"{path}: damaged ({error}); fetch or compress it again"
            raise DataError(msg) from None
    if begun:
        raise EOFError("the last frame has no end")
