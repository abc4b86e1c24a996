"""CSV and TSV: a record a row, whose quoted values may hold delimiters and line ends."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import lines
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.file_source import RecordSource
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import Overlong, Span, is_packed, lines_of
from data_pipeline.sources.source import Locate, Part, Rejected
from data_pipeline.sources.text import BYTE_ORDER_MARKS, SAID, Encoding

Sign = Annotated[str, Field(pattern=r"^[\t\x1f -~]$")]
"""One ASCII character."""
GB18030_SAFE = frozenset("\t\x1f !\"#$%&'()*+,-./:;<=>?")
"""What is never the second byte of a character there."""


class CsvSource(RecordSource):
    """Reads ``.csv`` and ``.tsv``, also packed (``.gz``, ``.zst``).

    Attributes:
        delimiter: between values; where it is not said, a comma in ``.csv``, a tab in ``.tsv``.
        quote: around values that hold a delimiter or a line end, doubled within them; null where
            nothing is quoted and a quotation mark is a sign like others.
        columns: their names, if the files do not begin with a row of them.
        encoding: of the files.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = tuple(
        kind + packed for kind in (".csv", ".tsv") for packed in ("", ".gz", ".zst")
    )

    name: Literal["csv"] = "csv"
    delimiter: Sign | None = None
    quote: Sign | None = '"'
    columns: list[str] | None = Field(default=None, min_length=1)
    encoding: Encoding = "utf-8"

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.quote is not None and self.quote == self.delimiter:
            msg = f"quote: {self.quote!r} is the delimiter, too"
            raise ValueError(msg)
        for sign in (self.delimiter, self.quote):
            if self.encoding == "gb18030" and (sign or " ") not in GB18030_SAFE:
                msg = f"{sign!r} may be half of a character of gb18030; convert the files to utf-8"
                raise ValueError(msg)
        if self.columns is not None:
            missing = [name for name in self.fields.all if name not in self.columns]
            twice = len(set(self.columns)) < len(self.columns)
            if missing or twice:
                msg = f"columns: {'a name stands twice' if twice else f'no {missing[0]!r}'}"
                raise ValueError(msg)
        return self

    def check(self, locate: Locate) -> None:
        super().check(locate)
        for file in islice(self.files(locate), 1):
            self._part(file).header()

    def parts_of(self, file: SourceFile) -> list[Part]:
        whole = self._part(file)
        if file.path is None or is_packed(file):
            return [whole]
        return list(whole.shares())

    def _part(self, file: SourceFile) -> "CsvPart":
        tabs = file.name.removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
        delimiter = self.delimiter or ("\t" if tabs else ",")
        form = _Form(delimiter, self.quote, self.encoding, self.longest_record)
        columns = None if self.columns is None else tuple(self.columns)
        return CsvPart(file, Span(), self.fields, form, columns)


@dataclass(frozen=True, slots=True)
class _Form:
    """How values are told apart."""

    delimiter: str
    quote: str | None
    encoding: Encoding
    longest: int

    def stays_open(self, line: bytes, is_open: bool) -> bool:  # noqa: FBT001 -- a state, in and out
        """Whether the line ends within a quoted value, given whether it began in one.

        As Python's csv has it: a quote opens at the start of a value only; doubled, it is a sign.
        """
        if self.quote is None:
            return False
        quote = self.quote.encode()
        opening = self.delimiter.encode() + quote
        at = 0 if is_open else 1 if line.startswith(quote) else _behind(line, opening, 0)
        while at >= 0:
            end = line.find(quote, at)
            while end >= 0 and line.startswith(quote, end + 1):
                end = line.find(quote, end + 2)
            if end < 0:
                return True
            at = _behind(line, opening, end + 1)
        return False

    def values(self, record: bytes) -> list[str]:
        """The values of a record; UnicodeDecodeError, csv.Error."""
        text = record.decode(self.encoding)
        # Of the whole process, and no other value of it would do for a record of this length.
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        if self.quote is None:
            rows = csv.reader([text], delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader([text], delimiter=self.delimiter, quotechar=self.quote, strict=True)
        return next(rows, [])


@dataclass(frozen=True, slots=True)
class _Record:
    """The lines of one record.

    Attributes:
        line: number of the first.
        last: number of the last.
        content: their bytes, or that they are too many.
        ended: False if the file ends within a quoted value.
    """

    line: int
    last: int
    content: bytes | Overlong
    ended: bool

    @property
    def is_blank(self) -> bool:
        return isinstance(self.content, bytes) and not self.content.strip(b"\r\n")


@dataclass(frozen=True, slots=True)
class CsvPart:
    """Some records of a file.

    Attributes:
        columns: the names of the columns; None: they are the file's first record.
    """

    file: SourceFile
    span: Span
    fields: Fields
    form: _Form
    columns: tuple[str, ...] | None

    def read(self) -> Iterator[Document | Rejected]:
        columns: Sequence[str] | None = self.columns
        shown, name = str(self.file), self.file.name
        for record in _records(self.file, self.span, self.form):
            if record.is_blank:
                continue
            if columns is None:
                columns = self._columns(record)
                continue
            where = f"{shown}:{record.line}"
            values = self._values(record)
            if isinstance(values, str):
                yield Rejected(where, values)
            elif len(values) != len(columns):
                yield Rejected(where, f"{len(values)} values, expected {len(columns)}")
            else:
                named = dict(zip(columns, values, strict=True))
                yield self.fields.document(named, f"{name}:{record.line}", where)

    def header(self) -> tuple[str, ...] | None:
        """The names of the columns; None for a file without a record."""
        if self.columns is not None:
            return self.columns
        records = _records(self.file, self.span, self.form)
        first = next((record for record in records if not record.is_blank), None)
        return None if first is None else self._columns(first)

    def shares(self) -> Iterator["CsvPart"]:
        """The records of a local plain file in shares of about ``PART_BYTES``."""
        columns = self.header()
        if columns is None:
            return
        start, line = 0, 1
        named = self.columns
        for stop, following in _record_ends(self.file, self.form):
            if stop - start >= lines.PART_BYTES:
                yield replace(self, span=Span(start, stop, line), columns=named)
                # Only the share at the file's start has the row of names in it.
                start, line, named = stop, following, columns
        if start < (self.file.size() or 0):
            yield replace(self, span=Span(start, None, line), columns=named)

    def _columns(self, record: _Record) -> tuple[str, ...]:
        values = self._values(record)
        if isinstance(values, str):
            msg = f"{self.file}:{record.line}: the row of column names: {values}"
            raise DataError(msg)
        for name in self.fields.all:
            if values.count(name) != 1:
                how = "no column" if name not in values else "several columns"
                msg = (
                    f"{self.file}:{record.line}: {how} '{name}' (columns: "
                    f"{', '.join(values[:8])}); name them in `fields`, or give `columns`"
                )
                raise DataError(msg)
        return tuple(values)

    def _values(self, record: _Record) -> list[str] | str:
        """The values of a record, or why there are none."""
        if not record.ended:
            return f"a quoted value is not closed until the end of the file, line {record.last}"
        if isinstance(record.content, Overlong):
            return record.content.reason(self.form.longest)
        try:
            return self.form.values(record.content)
        except UnicodeDecodeError as error:
            line = record.content.count(b"\n", 0, error.start) + record.line
            return (
                f"not {SAID[self.form.encoding]} in line {line} "
                f"({record.content[error.start]:#04x}); convert the file, or say its `encoding`"
            )
        except csv.Error as error:
            return f"not CSV: {error}"


def _behind(line: bytes, sign: bytes, at: int) -> int:
    """Where the next ``sign`` ends; -1 if there is none."""
    found = line.find(sign, at)
    return found if found < 0 else found + len(sign)


def _records(file: SourceFile, span: Span, form: _Form) -> Iterator[_Record]:
    """The records of a span; one of more than ``longest`` bytes is passed over, not held."""
    held = bytearray()
    first = last = size = 0
    is_open = False
    for number, line in lines_of(file, span, form.longest, BYTE_ORDER_MARKS[form.encoding]):
        first, last = first or number, number
        if isinstance(line, Overlong):
            size += line.size
            # Nobody knows what it had in it: what follows is taken as it looks.
            is_open = False
        else:
            size += len(line)
            is_open = form.stays_open(line, is_open)
        if size > form.longest + 2:
            held.clear()
        elif isinstance(line, bytes):
            held += line
        if not is_open:
            yield _Record(first, last, _held(held, size), ended=True)
            held, first, size = bytearray(), 0, 0
    if size:
        yield _Record(first, last, _held(held, size), ended=False)


def _held(held: bytearray, size: int) -> bytes | Overlong:
    return bytes(held) if len(held) == size else Overlong(size)


def _record_ends(file: SourceFile, form: _Form) -> Iterator[tuple[int, int]]:
    """Offset behind the last record that ends in each stretch of a file, and the next line.

    It stops at a line that is too long to be held.
    """
    offset, number, is_open = 0, 1, False
    end = (0, 1)
    told = 0
    with file.open() as stream:
        while line := stream.readline(form.longest + 2):
            if len(line) > form.longest and not line.endswith(b"\n"):
                break
            offset += len(line)
            number += 1
            is_open = form.stays_open(line, is_open)
            if not is_open:
                end = (offset, number)
            if offset - told >= lines.BLOCK and end[0] > told:
                yield end
                told = end[0]
    yield end
