"""Arrow's IPC files and streams, and the folders that ``datasets.save_to_disk`` writes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import lines
from data_pipeline.sources.columnar import ROWS_A_BATCH, Columns, Places
from data_pipeline.sources.file_source import RecordSource
from data_pipeline.sources.files import SourceFile, files_at
from data_pipeline.sources.source import Locate, Part, Rejected

if TYPE_CHECKING:
    import pyarrow as pa

STATE = "state.json"
SPLITS = "dataset_dict.json"
IPC_FILE = b"ARROW1\x00\x00"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class ArrowSource(RecordSource):
    """Reads ``.arrow``, ``.ipc`` and ``.feather`` (IPC files or streams).

    A folder of ``datasets.save_to_disk`` is read as its ``state.json`` says; of several splits
    one must be named.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".arrow", ".ipc", ".feather")

    name: Literal["arrow"] = "arrow"

    @property
    def columns(self) -> Columns:
        """How rows become documents."""
        return Columns(self.fields, self.longest_record)

    def files(self, locate: Locate) -> list[SourceFile]:
        found = files_at(self.path, locate, (*self.SUFFIXES, STATE, SPLITS))
        for file in found:
            if _base(file) == SPLITS:
                splits = ", ".join(f"{self.path}/{name}" for name in _json(file)["splits"])
                msg = f"{file}: a data set of several splits; name one of {splits}"
                raise DataError(msg)
        states = {_folder(file): _named(file) for file in found if _base(file) == STATE}
        taken = [
            file
            for file in found
            if file.name.endswith(self.SUFFIXES)
            # Others there are what a `map` over the data set left behind.
            and _base(file) in states.get(_folder(file), {_base(file)})
        ]
        _require_all(states, taken)
        if not taken:
            msg = f"{self.path}: no file ending in {', '.join(self.SUFFIXES)} below it"
            raise DataError(msg)
        return taken

    def check(self, locate: Locate) -> None:
        super().check(locate)
        for file in islice(self.files(locate), 1):
            with opened(file) as batches:
                self.columns.require(batches.schema, str(file))

    def parts_of(self, file: SourceFile) -> list[Part]:
        with opened(file) as batches:
            self.columns.require(batches.schema, str(file))
            if file.path is None:
                return [ArrowPart(file, self.columns)]
            parts: list[Part] = []
            first = size = start = rows = 0
            number = -1
            for number, batch in enumerate(batches):
                rows, size = rows + batch.num_rows, size + batch.get_total_buffer_size()
                if size >= lines.PART_BYTES:
                    parts.append(ArrowPart(file, self.columns, first, number + 1, start))
                    first, start, size = number + 1, rows, 0
            if first <= number:
                parts.append(ArrowPart(file, self.columns, first, number + 1, start))
        return parts


@dataclass(frozen=True, slots=True)
class ArrowPart:
    """Some record batches of a file.

    Attributes:
        first: number of the first batch.
        stop: number of the batch behind the last; None: to the end.
        start: how many rows stand before them.
    """

    file: SourceFile
    columns: Columns
    first: int = 0
    stop: int | None = None
    start: int = 0

    def read(self) -> Iterator[Document | Rejected]:
        row = self.start + 1
        with opened(self.file) as batches:
            for batch in islice(batches, self.first, self.stop):
                for at in range(0, batch.num_rows, ROWS_A_BATCH):
                    share = batch.slice(at, ROWS_A_BATCH)
                    places = Places(self.file.name, str(self.file), row)
                    yield from self.columns.documents(share, places)
                    row += share.num_rows


class _Batches:
    """The record batches of an IPC file or stream, in order."""

    def __init__(self, source: "pa.NativeFile", is_file: bool) -> None:  # noqa: FBT001
        import pyarrow as pa

        self._reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        self._is_file = is_file
        self.schema: pa.Schema = self._reader.schema

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        for batch in self._read():
            # That its buffers are as long as its numbers of rows ask for; nothing else checks it.
            batch.validate()
            yield batch

    def _read(self) -> "Iterator[pa.RecordBatch]":
        if not self._is_file:
            yield from self._reader
            return
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)


@contextmanager
def opened(file: SourceFile) -> Iterator[_Batches]:
    """The batches of a file; DataError when it is cut short or damaged, also while reading."""
    import pyarrow as pa

    try:
        with ExitStack() as stack:
            # Mapped, batches that are passed over are not read.
            source: Any = (
                stack.enter_context(file.open())
                if file.path is None
                else stack.enter_context(pa.memory_map(str(file.path)))
            )
            is_file = source.read(len(IPC_FILE)) == IPC_FILE
            if not is_file:
                _require_end(file, source)
            source.seek(0)
            yield _Batches(source, is_file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        msg = f"{file}: cut short, damaged or no Arrow data ({error}); fetch or write it again"
        raise DataError(msg) from None


def _require_end(file: SourceFile, source: Any) -> None:
    """A stream that is cut behind a batch would look whole."""
    size = source.seek(0, 2)
    source.seek(max(0, size - len(END_OF_STREAM)))
    if source.read() != END_OF_STREAM:
        msg = f"{file}: no mark at its end: cut short, or never closed; fetch or write it again"
        raise DataError(msg)


def _base(file: SourceFile) -> str:
    return PurePosixPath(file.name).name


def _folder(file: SourceFile) -> PurePosixPath:
    return PurePosixPath(file.name).parent


def _named(state: SourceFile) -> set[str]:
    return {str(entry["filename"]) for entry in _json(state)["_data_files"]}


def _require_all(states: "dict[PurePosixPath, set[str]]", taken: list[SourceFile]) -> None:
    there = {file.name for file in taken}
    for folder, names in states.items():
        for name in sorted(names):
            if (folder / name).as_posix() not in there:
                msg = f"{folder / name}: missing, although {folder / STATE} names it"
                raise DataError(msg)


def _json(file: SourceFile) -> dict[str, Any]:
    try:
        with file.open() as stream:
            values: dict[str, Any] = json.load(stream)
    except ValueError as error:
        msg = f"{file}: not readable as JSON ({error})"
        raise DataError(msg) from None
    return values
