"""Parquet: groups of rows are the shares, and only the columns that are asked for are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import lines
from data_pipeline.sources.columnar import ROWS_A_BATCH, Columns, Places
from data_pipeline.sources.file_source import RecordSource
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.source import Locate, Part, Rejected

if TYPE_CHECKING:
    import pyarrow.parquet as pq


class ParquetSource(RecordSource):
    """Reads ``.parquet``.

    Checksums of pages are checked where the writer left them; pyarrow's leaves none by default.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".parquet",)

    name: Literal["parquet"] = "parquet"

    @property
    def columns(self) -> Columns:
        """How rows become documents."""
        return Columns(self.fields, self.longest_record)

    def check(self, locate: Locate) -> None:
        super().check(locate)
        for file in islice(self.files(locate), 1):
            with opened(file) as parquet:
                self.columns.require(parquet.schema_arrow, str(file))

    def parts_of(self, file: SourceFile) -> list[Part]:
        parts: list[Part] = []
        with opened(file) as parquet:
            self.columns.require(parquet.schema_arrow, str(file))
            first = row = size = 0
            start = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                row, size = row + group.num_rows, size + group.total_byte_size
                if size >= lines.PART_BYTES or number == parquet.num_row_groups - 1:
                    groups = tuple(range(first, number + 1))
                    parts.append(ParquetPart(file, self.columns, groups, start))
                    first, start, size = number + 1, row, 0
        return parts


@dataclass(frozen=True, slots=True)
class ParquetPart:
    """Some row groups of a file.

    Attributes:
        start: how many rows stand before them.
    """

    file: SourceFile
    columns: Columns
    groups: tuple[int, ...]
    start: int

    def read(self) -> Iterator[Document | Rejected]:
        row = self.start + 1
        with opened(self.file) as parquet:
            batches = parquet.iter_batches(
                ROWS_A_BATCH,
                row_groups=list(self.groups),
                columns=list(self.columns.fields.all),
                use_threads=False,
            )
            for batch in batches:
                places = Places(self.file.name, str(self.file), row)
                yield from self.columns.documents(batch, places)
                row += batch.num_rows


@contextmanager
def opened(file: SourceFile) -> "Iterator[pq.ParquetFile]":
    """A parquet file; DataError naming it when it is cut short or damaged, also while reading."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (
            file.open() as stream,
            # By and by, not a column of a row group at once: groups of gigabytes are common.
            pq.ParquetFile(
                stream, buffer_size=lines.BLOCK, page_checksum_verification=True
            ) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        msg = f"{file}: cut short, damaged or no parquet ({error}); fetch or write it again"
        raise DataError(msg) from None
