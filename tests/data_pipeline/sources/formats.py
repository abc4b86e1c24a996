"""The same records in every format that a source reads."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

Row = dict[str, str]


@dataclass(frozen=True)
class Format:
    """A source and how its files are written.

    Attributes:
        config: keys of the source beside ``path`` and ``fields``.
        file: the file's name; "" where ``write`` makes a folder.
        write: rows -> bytes, or (folder, rows) -> None.
        cut: several processes can share one file.
    """

    config: dict[str, Any]
    file: str
    write: Callable[..., bytes | None]
    cut: bool = True
    columns: bool = field(default=False)

    def make(self, folder: Path, rows: list[Row]) -> Path:
        """Write the rows; the path to read."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.file:
            self.write(folder, rows)
            return folder
        path = folder / self.file
        path.write_bytes(self.write(rows))
        return path


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, delimiter=",", encoding="utf-8", end="\r\n"):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode(encoding)


def _table(rows):
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def as_parquet(rows, group=3, **options):
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(_table(rows), sink, row_group_size=group, **options)
    return sink.getvalue()


def as_arrow(rows, kind="stream", batch=3):
    import pyarrow as pa

    sink, table = io.BytesIO(), _table(rows)
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def saved_to_disk(folder, rows):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder, num_shards=2)


def folder_of(name, write):
    def made(folder, rows):
        half = len(rows) // 2
        for part, some in enumerate((rows[:half], rows[half:])):
            (folder / f"train-{part}{name}").write_bytes(write(some))

    return made


FORMATS = {
    "jsonl": Format({"name": "jsonl"}, "r.jsonl", as_jsonl),
    "jsonl.gz": Format(
        {"name": "jsonl"}, "r.jsonl.gz", lambda r: gzip.compress(as_jsonl(r), mtime=0), cut=False
    ),
    "jsonl.zst": Format(
        {"name": "jsonl"}, "r.jsonl.zst", lambda r: zstandard.compress(as_jsonl(r)), cut=False
    ),
    "csv": Format({"name": "csv"}, "r.csv", as_csv),
    "tsv": Format({"name": "csv"}, "r.tsv", lambda r: as_csv(r, "\t", end="\n")),
    "csv.gz": Format(
        {"name": "csv"}, "r.csv.gz", lambda r: gzip.compress(as_csv(r), mtime=0), cut=False
    ),
    "csv-gb18030": Format(
        {"name": "csv", "encoding": "gb18030", "delimiter": ";"},
        "r.csv",
        lambda r: as_csv(r, ";", "gb18030"),
    ),
    "parquet": Format({"name": "parquet"}, "r.parquet", as_parquet, columns=True),
    "parquet-dictionary": Format(
        {"name": "parquet"},
        "r.parquet",
        lambda r: as_parquet(r, use_dictionary=True, compression="zstd"),
        columns=True,
    ),
    "arrow-stream": Format({"name": "arrow"}, "r.arrow", as_arrow, columns=True),
    "arrow-file": Format({"name": "arrow"}, "r.arrow", lambda r: as_arrow(r, "file"), columns=True),
    "save_to_disk": Format({"name": "arrow"}, "", saved_to_disk, columns=True),
    "datasets-parquet": Format(
        {"name": "datasets"}, "", folder_of(".parquet", as_parquet), columns=True
    ),
    "datasets-jsonl": Format({"name": "datasets"}, "", folder_of(".jsonl", as_jsonl), columns=True),
}
