"""Lines of files, plain or packed, read so that none of them can fill the memory."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from configs.errors import DataError
from data_pipeline.sources.files import SourceFile

BLOCK = 1 << 20
PART_BYTES = 16 << 20
LONGEST_RECORD = 64 << 20
BOM = codecs.BOM_UTF8
PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix -> the name that Arrow's decompressors have for it."""


@dataclass(frozen=True, slots=True)
class Overlong:
    """A line or record that was passed over because it is too long to be held.

    Attributes:
        size: its bytes.
    """

    size: int

    def reason(self, longest: int) -> str:
        """What to tell of it."""
        return f"{self.size:,} bytes long; longest_record is {longest:,}"


@dataclass(frozen=True, slots=True)
class Span:
    """Whole lines of a file.

    Attributes:
        start: the byte where they start, at the start of a line.
        stop: the byte behind the end of the last of them; None: the end of the file.
        line: number of the first of them, from 1.
    """

    start: int = 0
    stop: int | None = None
    line: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it begins the file."""
        return self.start == 0


def is_packed(file: SourceFile) -> bool:
    """Whether it is compressed, by its name."""
    return file.name.endswith(tuple(PACKED))


def lines_of(
    file: SourceFile, span: Span, longest: int, mark: bytes = BOM
) -> Iterator[tuple[int, bytes | Overlong]]:
    """Number and content, with its end, of each line of a span.

    A line of more than ``longest`` bytes is passed over without being held. The byte order mark
    ``mark`` at the start of the file is no part of its first line.

    Raises:
        DataError: the file is packed and cut short or damaged, or cannot be read.
    """
    with _content(file) as stream:
        if span.start:
            stream.seek(span.start)
        left = None if span.stop is None else span.stop - span.start
        number = span.line
        lines = _bounded(stream, longest, left)
        while (line := _next(file, lines, number)) is not None:
            if number == 1 and span.is_first and isinstance(line, bytes):
                line = line.removeprefix(mark)
            yield number, line
            number += 1


def spans_of(file: SourceFile) -> Iterator[Span]:
    """Spans of about ``PART_BYTES`` of a local plain file; one span of any other."""
    if file.path is None or is_packed(file):
        yield Span()
        return
    start, line, lines = 0, 1, 0
    offset = 0
    with file.open() as stream:
        while block := stream.read(BLOCK):
            last = block.rfind(b"\n") + 1
            if last and offset + last - start >= PART_BYTES:
                lines += block.count(b"\n", 0, last)
                yield Span(start, offset + last, line)
                start, line, lines = offset + last, line + lines, block.count(b"\n", last)
            else:
                lines += block.count(b"\n")
            offset += len(block)
    if offset > start:
        yield Span(start, offset, line)


@contextmanager
def _content(file: SourceFile) -> Iterator[IO[bytes]]:
    """What stands in a file, unpacked; the decompressors of Arrow notice a frame that is cut."""
    suffix = next((suffix for suffix in PACKED if file.name.endswith(suffix)), None)
    if suffix is None:
        with file.open() as stream:
            yield stream
        return
    if file.size() == 0:
        msg = f"{file}: empty, which no {suffix} file is; fetch or compress it again"
        raise DataError(msg)
    import pyarrow as pa

    with file.open() as packed, pa.CompressedInputStream(packed, PACKED[suffix]) as unpacked:
        yield io.BufferedReader(unpacked, BLOCK)


def _next(
    file: SourceFile, lines: Iterator[bytes | Overlong], number: int
) -> bytes | Overlong | None:
    try:
        return next(lines, None)
    except OSError as error:
        # Arrow's decompressors raise OSError without a number for what they cannot unpack.
        if error.errno is None and is_packed(file):
            msg = (
                f"{file}: cut short or damaged behind line {number - 1} ({error}); "
                "fetch or compress it again"
            )
        else:
            msg = f"{file}:{number}: cannot be read ({error.strerror or error})"
        raise DataError(msg) from None


def _bounded(stream: IO[bytes], longest: int, left: int | None) -> Iterator[bytes | Overlong]:
    """Lines of the next ``left`` bytes of a stream, all of them where that is None."""
    while left is None or left > 0:
        line = stream.readline(longest + 2)
        if not line:
            return
        size = len(line)
        if size <= longest or len(line.rstrip(b"\r\n")) <= longest:
            yield line
        else:
            ended = line.endswith(b"\n")
            del line
            while not ended and (more := stream.readline(BLOCK)):
                size += len(more)
                ended = more.endswith(b"\n")
            yield Overlong(size)
        if left is not None:
            left -= size
