"""CSV: what is quoted, what is cut, and what is no CSV."""

import csv
import io
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import CsvSource, Rejected, lines


def write(folder, content, name="rows.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def items(path, **values):
    source = CsvSource(path=str(path), **values)
    return list(chain.from_iterable(part.read() for part in source.parts(Path)))


def texts(path, **values):
    return [document.text for document in CsvSource(path=str(path), **values).documents(Path)]


VALUES = st.text('a,"\n\r é\t', max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20),
    delimiter=st.sampled_from(",\t;"),
    end=st.sampled_from(["\n", "\r\n"]),
    every=st.booleans(),
    part=st.integers(1, 120),
    block=st.integers(1, 60),
)
def test_records_are_what_was_written_wherever_the_file_is_cut(
    tmp_path_factory, rows, delimiter, end, every, part, block
):
    stream = io.StringIO()
    # With "\n" as the end Python's writer would leave "\r" bare, which no reader could tell.
    every |= any("\r" in value for row in rows for value in row)
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["text", "other"])
    writer.writerows(rows)
    path = write(tmp_path_factory.mktemp("csv"), stream.getvalue())
    values = {"delimiter": delimiter, "fields": {"metadata": ["other"]}}
    whole = items(path, **values)
    assert [(d.text, d.metadata["other"]) for d in whole] == rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PART_BYTES", part)
        patch.setattr(lines, "BLOCK", block)
        assert items(path, **values) == whole


@settings(max_examples=60, deadline=None)
@given(content=st.text('a,"\n', max_size=60), part=st.integers(1, 30))
def test_whatever_stands_in_a_file_each_line_of_it_is_told_of(tmp_path_factory, content, part):
    path = write(tmp_path_factory.mktemp("csv"), content)
    values = {"columns": ["text", "b"]}
    whole = items(path, **values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PART_BYTES", part)
        patch.setattr(lines, "BLOCK", 8)
        assert items(path, **values) == whole
    if '"' not in content:
        good = [line for line in content.split("\n") if line.count(",") == 1]
        bad = [line for line in content.split("\n") if line and line.count(",") != 1]
        assert [d.text for d in whole if isinstance(d, Document)] == [
            line.split(",")[0] for line in good
        ]
        assert sum(isinstance(item, Rejected) for item in whole) == len(bad)


BAD = {
    "one": "1 values, expected 2",
    "one,two,three": "3 values, expected 2",
    '"a"b,two': "not CSV: ',' expected after '\"'",
    "a\rb,two": "not CSV: new-line character seen in unquoted field",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_malformed_record_is_named(tmp_path, bad):
    path = write(tmp_path, f'text,n\n"a\nb",1\n{bad}\nlast,2\n')
    with pytest.raises(DataError) as told:
        texts(path)
    assert f"{path}:4: {BAD[bad]}" in str(told.value)
    assert texts(path, max_rejected=1) == ["a\nb", "last"]


def test_what_is_not_utf8_is_named_by_its_line(tmp_path):
    path = write(tmp_path, b'text,n\nok,1\n"a\n\xe9",2\n\xff,3\nlast,4\n')
    rejected = [item for item in items(path) if isinstance(item, Rejected)]
    assert [item.where for item in rejected] == [f"{path}:3", f"{path}:5"]
    assert "not UTF-8 in line 4 (0xe9)" in rejected[0].reason
    assert texts(path, max_rejected=2) == ["ok", "last"]
    assert texts(path, encoding="latin-1")[1:3] == ["a\n\xe9", "\xff"]


def test_a_quote_that_is_never_closed_is_told_with_all_that_it_swallowed(tmp_path):
    path = write(tmp_path, 'text,n\nok,1\n"open,2\nlost,3\nlost,4\n')
    (good, bad) = items(path)
    assert good.text == "ok"
    assert bad.where == f"{path}:3"
    assert "not closed until the end of the file, line 5" in bad.reason


def test_a_record_over_many_lines_is_limited_as_a_whole(tmp_path):
    path = write(tmp_path, 'text,n\n"' + "line\n" * 100 + '",1\nnext,2\n')
    (long, good) = items(path, longest_record=100)
    assert long == Rejected(f"{path}:2", "505 bytes long; longest_record is 100")
    assert good.text == "next"


def test_names_of_columns(tmp_path):
    path = write(tmp_path, "\ufeff\r\n\r\ntext,id\r\none,1\r\n\r\ntwo,2\r\n")
    assert texts(path) == ["one", "two"]
    bare = write(tmp_path, "one,1\ntwo,2\n", "bare.csv")
    assert texts(bare, columns=["text", "id"], fields={"id": "id"}) == ["one", "two"]
    with pytest.raises(DataError, match=r"bare\.csv:1: no column 'text' \(columns: one, 1\)"):
        CsvSource(path=str(bare)).check(Path)
    twice = write(tmp_path, "text,text\n1,2\n", "twice.csv")
    with pytest.raises(DataError, match=r"twice\.csv:1: several columns 'text'"):
        texts(twice)
    assert texts(write(tmp_path, "text\n", "none.csv")) == []
    assert texts(write(tmp_path, b"", "empty.csv")) == []
    with pytest.raises(DataError, match=r"empty\.csv: empty"):
        CsvSource(path=str(tmp_path / "empty.csv")).check(Path)


def test_without_quotes_a_quotation_mark_is_a_sign(tmp_path, small_parts):
    rows = [f'5" disk {at}\t"x' for at in range(30)]
    path = write(tmp_path, "text\tn\n" + "\n".join(rows), "rows.tsv")
    assert texts(path, quote=None) == [row.split("\t")[0] for row in rows]
    assert len(CsvSource(path=str(path), quote=None).parts(Path)) > 1


def test_values_longer_than_the_library_takes_by_itself(tmp_path):
    text = "中" * 200_000
    assert texts(write(tmp_path, f"text,n\n{text},1\n")) == [text]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"quote": ",", "delimiter": ","}, "is the delimiter, too"),
        ({"delimiter": "|", "encoding": "gb18030"}, "may be half of a character"),
        ({"columns": ["a"]}, "no 'text'"),
        ({"columns": ["text", "text"]}, "stands twice"),
        ({"delimiter": ",,"}, "match pattern"),
        ({"delimiter": "\n"}, "match pattern"),
    ],
)
def test_settings_that_cannot_be_honoured(values, told):
    with pytest.raises(ValidationError, match=told):
        CsvSource(path="x.csv", **values)
