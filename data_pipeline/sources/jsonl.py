"""JSON lines, plain or packed: one object with a text a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources.fields import Fields, shown, surrogate_in
from data_pipeline.sources.file_source import RecordSource
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import Overlong, Span, lines_of, spans_of
from data_pipeline.sources.source import Locate, Part, Rejected

LOOKED_AT = 20
"""So many records are looked at before anything runs."""


class JsonlSource(RecordSource):
    """Reads ``.jsonl``, ``.jsonl.gz`` and ``.jsonl.zst``."""

    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".jsonl.gz", ".jsonl.zst")

    name: Literal["jsonl"] = "jsonl"

    def check(self, locate: Locate) -> None:
        """Also DataError when not one of the first records is a document: a wrong field name.

        Not for fewer than a count in ``max_rejected`` bears, nor for a few where it is a share.
        """
        super().check(locate)
        for file in self.files(locate):
            part = JsonlPart(file, Span(), self.fields, self.longest_record)
            found = list(islice(part.read(), LOOKED_AT))
            if not found:
                continue
            first, most = found[0], self.rejected_at_most
            enough = len(found) == LOOKED_AT if most is None else len(found) > most
            if enough and isinstance(first, Rejected) and not _has_document(found):
                others = f"; so it is with all of its first {len(found)} records"
                msg = f"{first.where}: {first.reason}{others if len(found) > 1 else ''}"
                raise DataError(f"{msg}; name the right field in 'fields', or repair the file")
            return

    def parts_of(self, file: SourceFile) -> list[Part]:
        return [JsonlPart(file, span, self.fields, self.longest_record) for span in spans_of(file)]


def _has_document(items: Iterable[Document | Rejected]) -> bool:
    return any(isinstance(item, Document) for item in items)


@dataclass(frozen=True, slots=True)
class JsonlPart:
    """Some lines of a file."""

    file: SourceFile
    span: Span
    fields: Fields
    longest: int

    def read(self) -> Iterator[Document | Rejected]:
        shown, name = str(self.file), self.file.name
        for number, line in lines_of(self.file, self.span, self.longest):
            where = f"{shown}:{number}"
            if isinstance(line, Overlong):
                yield Rejected(where, line.reason(self.longest))
            elif line.strip():
                yield self._document(f"{name}:{number}", where, line)

    def _document(self, place: str, where: str, line: bytes) -> Document | Rejected:
        values = _parsed(line)
        if isinstance(values, str):
            return Rejected(where, values)
        document = self.fields.document(values, place, where)
        # Only an escape can bring one into text that was UTF-8.
        if b"\\u" in line and isinstance(document, Document) and (why := surrogate_in(document)):
            return Rejected(where, why)
        return document


class _DuplicateKeyError(ValueError):
    """A key stands twice in one object."""


def _parsed(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or why there is none."""
    try:
        values = _DECODER.decode(line.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except _DuplicateKeyError as error:
        return f"ambiguous: key {shown(str(error))} stands twice in one object"
    except ValueError as error:  # an integer of more digits than Python reads
        return f"not readable: {error}"
    except RecursionError:
        return "not readable: nested too deeply"
    return values if isinstance(values, dict) else f"expected an object, found {shown(values)}"


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unambiguous)
