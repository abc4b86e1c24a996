"""JSON lines: the same documents whatever the packing, and every bad line by its place."""

import gzip
import json
from itertools import chain
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import JsonlSource, Rejected, Source
from data_pipeline.sources import lines as lines_module

GOOD = [{"id": i, "text": f"text {i} – ü", "group": f"g{i % 3}"} for i in range(20)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def source(path, **values):
    return JsonlSource(path=str(path), **values)


def texts(path, **values):
    return [document.text for document in source(path, **values).documents(Path)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_plain_and_packed_files_give_the_same_documents(tmp_path, suffix):
    pack = {
        ".jsonl": bytes,
        ".jsonl.gz": gzip.compress,
        # Two frames, as tools that append leave them.
        ".jsonl.zst": lambda b: b"".join(
            zstandard.compress(half) for half in (b[: len(b) // 2], b[len(b) // 2 :])
        ),
    }[suffix]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(pack(lines(GOOD)))
    fields = {"id": "id", "group": "group"}
    found = list(source(path, fields=fields).documents(Path))
    assert found == [Document(r["text"], str(r["id"]), r["group"]) for r in GOOD]


def test_without_fields_a_document_is_named_by_its_line_and_is_its_own_group(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(GOOD[:1]) + b"\r\n\n" + lines(GOOD[1:2]))
    found = list(source(path).documents(Path))
    assert [(d.text, d.id, d.group) for d in found] == [
        (GOOD[0]["text"], "rows.jsonl:1", "rows.jsonl:1"),
        (GOOD[1]["text"], "rows.jsonl:4", "rows.jsonl:4"),
    ]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    part=st.integers(1, 200),
    block=st.integers(1, 90),
    end=st.sampled_from([b"", b"\n"]),
)
def test_parts_share_a_file_without_loss_or_repetition(tmp_path_factory, sizes, part, block, end):
    path = tmp_path_factory.mktemp("parts") / "rows.jsonl"
    rows = [{"text": f"{i}:" + "x" * size} for i, size in enumerate(sizes)]
    path.write_bytes(lines(rows).rstrip(b"\n") + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "PART_BYTES", part)
        patch.setattr(lines_module, "BLOCK", block)
        parts = source(path).parts(Path)
    found = list(chain.from_iterable(p.read() for p in parts))
    assert [d.text for d in found] == [row["text"] for row in rows]
    assert [d.id for d in found] == [f"rows.jsonl:{i}" for i in range(1, len(rows) + 1)]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.jsonl").write_bytes(lines([{"text": "2"}]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines([{"text": "1"}])))
    (tmp_path / "c.txt").write_text("not read")
    assert texts(tmp_path) == ["1", "2"]


BAD = {
    b'{"text": "cut': "not JSON",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"txt": "x"}': "no field 'text'",
    b'{"text": null}': "'text' is null, expected a string",
    b'{"text": 3}': "'text' is 3, expected a string",
    b'["text"]': "expected an object",
    b"\x00": "not JSON",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_malformed_line_is_named(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(GOOD[:2]) + bad + b"\n" + lines(GOOD[2:4]))
    with pytest.raises(DataError) as told:
        texts(path)
    assert f"{path}:3: " in str(told.value)
    assert BAD[bad] in str(told.value)
    assert texts(path, max_rejected=1) == [row["text"] for row in GOOD[:4]]


def test_the_budget_of_rejected_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*BAD, lines(GOOD)]))
    assert len(texts(path, max_rejected=len(BAD))) == len(GOOD)
    with pytest.raises(DataError, match=rf"rows\.jsonl:{len(BAD)}: .*max_rejected"):
        texts(path, max_rejected=len(BAD) - 1)
    items = list(source(path).parts(Path)[0].read())
    assert sum(isinstance(item, Rejected) for item in items) == len(BAD)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".jsonl.gz", gzip.compress), (".jsonl.zst", zstandard.compress)]
)
def test_a_packed_file_cut_short_is_named(tmp_path, suffix, pack):
    path = tmp_path / f"rows{suffix}"
    content = pack(lines(GOOD * 50))
    for stop in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:stop])
        with pytest.raises(DataError, match=f"{path}: cut short or damaged"):
            texts(path)
    path.write_bytes(b"no such format" * 9)
    with pytest.raises(DataError, match=f"{path}: .*damaged"):
        texts(path)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no file ending in \.jsonl"):
        texts(tmp_path)
    (tmp_path / "rows.csv").write_text("text")
    with pytest.raises(DataError, match=r"rows\.csv: expected a file ending in"):
        texts(tmp_path / "rows.csv")


def test_digest_follows_contents_and_names(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(GOOD))
    before = source(path).digest(Path)
    assert before == source(tmp_path).digest(Path)
    path.write_bytes(lines(GOOD[1:]))
    changed = source(path).digest(Path)
    path.rename(tmp_path / "other.jsonl")
    assert len({before, changed, source(tmp_path).digest(Path)}) == 3


def test_the_union_knows_it_by_name():
    assert isinstance(
        TypeAdapter(Source).validate_python({"name": "jsonl", "path": "x"}), JsonlSource
    )
