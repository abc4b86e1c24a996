"""Parquet and Arrow: damage is an error that names the file, bad values are rejected by row."""

import datetime
import decimal
import io
import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import ArrowSource, ParquetSource, Rejected
from tests.data_pipeline.sources.formats import as_arrow, as_parquet

ROWS = [{"text": f"text {at} é", "n": at} for at in range(12)]
TEXTS = [row["text"] for row in ROWS]
KINDS = {
    "parquet": (ParquetSource, lambda rows: as_parquet(rows, write_page_checksum=True)),
    "arrow": (ArrowSource, as_arrow),
    "ipc": (ArrowSource, lambda rows: as_arrow(rows, "file")),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def source(path, **values):
    return KINDS[path.name.rpartition(".")[2]][0](path=str(path), **values)


def texts(path, **values):
    return [document.text for document in source(path, **values).documents(Path)]


def write(folder, kind, table):
    path, sink = folder / f"rows.{kind}", io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        make = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    path.write_bytes(sink.getvalue())
    return path


def test_cut_anywhere(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    content = KINDS[kind][1](ROWS)
    for stop in range(0, len(content), 7):
        path.write_bytes(content[:stop])
        with pytest.raises(DataError, match=f"{path}: (cut short|no mark at its end)"):
            texts(path)
    path.write_bytes(b"no such format at all" * 20)
    with pytest.raises(DataError, match=str(path)):
        texts(path)


def test_a_flipped_bit_crashes_nothing_and_in_checked_pages_is_noticed(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    content = KINDS[kind][1]([row | {"tags": ["a", "b"]} for row in ROWS[:6]])
    wrong = 0
    for at in range(0, len(content), 3):
        flipped = content[at] ^ (1 << at % 8)
        path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        try:
            wrong += texts(path, fields={"metadata": ["tags"]}, max_rejected=6) != TEXTS[:6]
        except DataError as error:
            told = str(error)
            assert str(path) in told
    # Only parquet has checksums, of its pages; numbers of rows stand in its unchecked footer.
    assert kind != "parquet" or wrong <= 5


def test_a_wrong_schema(tmp_path, kind):
    for table, told in (
        (pa.table({"txt": ["x"]}), r"no column 'text' \(columns: txt\)"),
        (pa.table({"text": [1]}), "'text' is of type int64, expected strings"),
        (pa.table({"text": [b"x"]}), "'text' is of type binary, expected strings"),
        (pa.table({"text": [["x"]]}), "'text' is of type list"),
    ):
        path = write(tmp_path, kind, table)
        for act in (source(path).check, source(path).parts):
            with pytest.raises(DataError, match=told):
                act(Path)
    path = write(tmp_path, kind, pa.table({"text": ["x"], "id": [0.5]}))
    with pytest.raises(DataError, match="'id' is of type double, expected strings or integers"):
        texts(path, fields={"id": "id"})


def test_no_rows_no_bytes_no_files(tmp_path, kind):
    path = write(tmp_path, kind, pa.table({"text": pa.array([], pa.string())}))
    assert texts(path) == []
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path}: empty"):
        source(path).check(Path)
    with pytest.raises(DataError, match="cut short"):
        texts(path)
    path.unlink()
    with pytest.raises(DataError, match="no file ending in"):
        KINDS[kind][0](path=str(tmp_path)).check(Path)


STRINGS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("form", STRINGS)
def test_values_that_are_not_utf8_are_rejected_by_row(tmp_path, kind, form):
    good = pa.array(["one", None, "三"], STRINGS[form])
    bad = pa.array([b"a", b"\xff\xfe is longer than twelve"])
    bad = {
        "string": lambda: bad.view(pa.string()),
        "large_string": lambda: bad.cast(pa.large_binary()).view(pa.large_string()),
        "string_view": lambda: bad.cast(pa.binary_view()).view(pa.string_view()),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(
            pa.array([0, 1], pa.int32()), bad.view(pa.string())
        ),
    }[form]()
    # An IPC file has one dictionary for all its batches.
    chunks = [bad] if (kind, form) == ("ipc", "dictionary") else [good, bad]
    path = write(tmp_path, kind, pa.table({"text": pa.chunked_array(chunks)}))
    items = list(chain.from_iterable(part.read() for part in source(path).parts(Path)))
    before = ["one", "三"] if len(chunks) == 2 else []
    assert [i.text for i in items if isinstance(i, Document)] == [*before, "a"]
    rejected = [(i.where, i.reason) for i in items if isinstance(i, Rejected)]
    assert rejected[-1] == (f"{path}:row {len(items)}", "'text' is not UTF-8 at byte 0")
    assert len(rejected) == len(chunks)


def test_metadata_of_every_kind(tmp_path, kind):
    moment = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
    row = {
        "text": "x",
        "id": 7,
        "day": moment.date(),
        "at": moment,
        "price": decimal.Decimal("1.50"),
        "tags": ["中", "b"],
        "more": {"k": 1.5, "none": None},
        "raw": b"\x00\xff",
        "absent": None,
    }
    table = pa.Table.from_pylist([row])
    nano = pa.array([1], pa.timestamp("ns"))
    path = write(tmp_path, kind, table.append_column("nano", nano))
    names = [*row, "nano"][2:]
    (found,) = source(path, fields={"id": "id", "metadata": names}).documents(Path)
    assert found.id == "7"
    assert dict(found.metadata) == {
        "day": "2024-02-29",
        "at": "2024-02-29 12:30:00.000000Z",
        "price": "1.50",
        "tags": '["中", "b"]',
        "more": '{"k": 1.5, "none": null}',
        "raw": "AP8=",
        "nano": "1970-01-01 00:00:00.000000001",
    }


def test_only_the_asked_columns_of_parquet_are_read(tmp_path):
    path = write(tmp_path, "parquet", pa.table({"text": ["a", "b"], "big": ["x" * 1000, "y"]}))
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(1)
        start = column.dictionary_page_offset or column.data_page_offset
        size = column.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    assert texts(path) == ["a", "b"]
    with pytest.raises(DataError, match="damaged"):
        texts(path, fields={"metadata": ["big"]})


def test_a_stream_that_is_cut_behind_a_batch_is_not_whole(tmp_path):
    path = tmp_path / "rows.arrow"
    content = as_arrow(ROWS)
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match="no mark at its end"):
        texts(path)


def test_a_saved_data_set_is_read_as_its_state_says(tmp_path):
    from datasets import Dataset, DatasetDict

    data = DatasetDict(train=Dataset.from_list(ROWS[:7]), test=Dataset.from_list(ROWS[7:]))
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"several splits; name one of .*/train, .*/test"):
        ArrowSource(path=str(tmp_path / "saved")).check(Path)
    train = tmp_path / "saved" / "train"
    (train / "cache-1234.arrow").write_bytes(as_arrow(ROWS[7:]))
    found = [d.text for d in ArrowSource(path=str(train)).documents(Path)]
    assert found == TEXTS[:7]
    (named,) = json.loads((train / "state.json").read_text())["_data_files"]
    (train / named["filename"]).unlink()
    with pytest.raises(DataError, match=r"missing, although state\.json names it"):
        ArrowSource(path=str(train)).check(Path)
