"""Documents from Arrow record batches: each value by itself, so that a bad one names its row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.lines import Overlong
from data_pipeline.sources.source import Rejected

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_BATCH = 128
"""Few, since a row may be a book."""


@dataclass(frozen=True, slots=True)
class Columns:
    """How rows become documents.

    Attributes:
        fields: which columns are what.
        longest: bytes; a row with a longer text is rejected.
    """

    fields: Fields
    longest: int

    def require(self, schema: "pa.Schema", where: str) -> None:
        """DataError when a column is missing, stands twice, or is of a type that is no text."""
        import pyarrow.types as kinds

        for name in self.fields.all:
            count = len(schema.get_all_field_indices(name))
            if count != 1:
                how = "no column" if count == 0 else "several columns"
                known = ", ".join(schema.names[:8])
                msg = f"{where}: {how} '{name}' (columns: {known}); name them in `fields`"
                raise DataError(msg)
        for name in self.fields.needed:
            kind = schema.field(name).type
            values = kind.value_type if kinds.is_dictionary(kind) else kind
            number = name != self.fields.text and kinds.is_integer(values)
            if not (_is_text(values) or kinds.is_null(values) or number):
                expected = "strings" if name == self.fields.text else "strings or integers"
                msg = f"{where}: column '{name}' is of type {kind}, expected {expected}"
                raise DataError(msg)

    def documents(self, batch: "pa.RecordBatch", places: "Places") -> Iterator[Document | Rejected]:
        """The documents of a batch's rows; DataError when its buffers are damaged."""
        names = self.fields.all
        columns = [_values(batch.column(name), self.longest) for name in names]
        for at in range(batch.num_rows):
            values = {name: column[at] for name, column in zip(names, columns, strict=True)}
            yield self.fields.document(values, places.place(at), places.where(at))


@dataclass(frozen=True, slots=True)
class Places:
    """What rows are called.

    Attributes:
        name: of what they stand in, the same on every machine.
        shown: the same for people.
        first: number of the first row, from 1.
    """

    name: str
    shown: str
    first: int = 1

    def place(self, row: int) -> str:
        return f"{self.name}:{self.first + row}"

    def where(self, row: int) -> str:
        return f"{self.shown}:row {self.first + row}"


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _values(column: "pa.Array", longest: int) -> Sequence[Any]:
    """Its values as Python's; what cannot be read is a ``Rejected`` with the reason alone.

    Raises:
        pa.ArrowInvalid: its buffers are damaged. They are checked before a value is looked at: a
            damaged offset would be followed into nowhere.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    if _is_text(kind):
        column = _as_bytes(column)
        column.validate(full=True)
        if kinds.is_dictionary(column.type):
            column = column.dictionary_decode()
        return [_decoded(value, longest) for value in column]
    column.validate(full=True)
    if kinds.is_temporal(kind):
        # Python has no nanoseconds.
        column = column.cast(kind).cast(pa.string())
    return list(column.to_pylist())


def _as_bytes(column: "pa.Array") -> "pa.Array":
    """Strings without the promise that they are UTF-8, which is then told value by value."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _as_bytes(column.dictionary))
    if kinds.is_string_view(column.type):
        return column.view(pa.binary_view())
    return column.view(pa.large_binary() if kinds.is_large_string(column.type) else pa.binary())


def _decoded(value: "pa.Scalar", longest: int) -> str | Rejected | None:
    content = value.as_buffer()
    if content is None:
        return None
    if len(content) > longest:
        return Rejected("", f"is {Overlong(len(content)).reason(longest)}")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        return Rejected("", f"is not UTF-8 at byte {error.start}")
