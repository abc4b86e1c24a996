"""JSON lines: the same documents whatever the packing, and every bad line by its place."""

import gzip
import json
import random
from itertools import chain
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import JsonlSource, Rejected, Source, jsonl
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
    b'{"text": "cut': "not JSON: Unterminated string",
    b'{"text": "cut"': "not JSON",
    b'{"text": "\xff"}': "not UTF-8 at byte 10 of the line",
    b'{"text": "\xed\xa0\x80"}': "not UTF-8",
    b'{"txt": "x"}': "no field 'text' for the text (fields: txt)",
    b"{}": "no field 'text' for the text (fields: none)",
    b'{"text": null}': "'text' is null, expected a string",
    b'{"text": 3}': "'text' is 3, expected a string",
    b'{"text": ["x"]}': "'text' is [\"x\"], expected a string",
    b'["text"]': "expected an object",
    b'"text"': "expected an object",
    b"\x00": "not JSON",
    b'{"text": "a\x00b"}': "not JSON: Invalid control character",
    b'{"text": "a\\ud83d b"}': "half a surrogate pair in the text, at character 1",
    b'{"text": "x", "text": "y"}': 'ambiguous: key "text" stands twice',
    b'{"text": "x", "more": {"a": 1, "a": 1}}': 'ambiguous: key "a" stands twice',
    b'{"text": "x"} {"text": "y"}': "not JSON: Extra data at column 15",
    b'{"text": "x': "not JSON: Unterminated string starting at column 10",
    b'\xef\xbb\xbf{"text": "a mark that is not at the start"}': "not JSON",
    b'{"text": "x", "n": ' + b"9" * 5000 + b"}": "not readable: Exceeds the limit",
    b"[" * 100_000: "not readable: nested too deeply",
}
GOOD_BUT_ODD = {
    b'{"text": "a\\u0000b"}': "a\x00b",
    b'{"text": "\\ud83d\\ude00"}': "\N{GRINNING FACE}",
    b'  {"text": "x"}\r': "x",
    b'{"text": ""}': "",
    b'{"text": " \xe3\x80\x80 "}': " \u3000 ",
    b'{"text": "x", "n": NaN}': "x",
}


@pytest.mark.parametrize("line", GOOD_BUT_ODD)
def test_what_looks_odd_and_is_text_all_the_same(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n" + lines(GOOD[:1]))
    assert texts(path) == [GOOD_BUT_ODD[line], GOOD[0]["text"]]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), part=st.integers(50, 2000))
def test_a_corpus_with_faults_is_counted_exactly(tmp_path_factory, seed, part):
    draw = random.Random(seed)
    path = tmp_path_factory.mktemp("faults") / "rows.jsonl"
    written = [draw.choice([*BAD, *GOOD_BUT_ODD, b"", b" \t"]) for _ in range(40)]
    written = [line for line in written if len(line) < 1000] or [b"{}"]
    path.write_bytes(b"\n".join(written))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "PART_BYTES", part)
        patch.setattr(lines_module, "BLOCK", 64)
        items = [item for p in source(path).parts(Path) for item in p.read()]
    bad = [(f"{path}:{at}", line) for at, line in enumerate(written, 1) if is_bad(at, line)]
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item.where for item in rejected] == [where for where, _ in bad]
    assert all(BAD[line] in item.reason for item, (_, line) in zip(rejected, bad, strict=True))
    blank = sum(not line.strip() for line in written)
    assert len(items) == len(written) - blank


def is_bad(number, line):
    """A byte order mark belongs to the start of a file."""
    return line in BAD and not (number == 1 and line.startswith(b"\xef"))


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
    ("suffix", "pack"),
    [
        (".jsonl.gz", gzip.compress),
        (".jsonl.zst", zstandard.ZstdCompressor(write_checksum=True).compress),
    ],
)
def test_a_packed_file_cut_short_is_named(tmp_path, suffix, pack):
    path = tmp_path / f"rows{suffix}"
    content = pack(lines(GOOD * 50))
    for stop in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:stop])
        with pytest.raises(DataError, match=f"{path}: cut short or damaged behind line"):
            texts(path, max_rejected=1000)
    for content in (b"no such format" * 9, pack(lines(GOOD)) + b"what is that", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: .*(damaged|empty)"):
            texts(path)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".jsonl.gz", gzip.compress),
        (".jsonl.zst", zstandard.ZstdCompressor(write_checksum=True).compress),
    ],
)
def test_a_flipped_bit_in_a_packed_file_is_noticed_wherever_it_is(tmp_path, suffix, pack):
    path = tmp_path / f"rows{suffix}"
    content = pack(lines(GOOD))
    noticed = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = texts(path)
        except DataError:
            noticed += 1
        else:  # a bit of no meaning, such as of the time of writing
            assert found == [row["text"] for row in GOOD]
    assert noticed > len(content) * 0.9


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


def test_metadata_is_text_or_json_and_may_be_absent(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": "a", "s": "as is \N{GRINNING FACE}", "n": 3, "x": 0.5, "b": True, "l": ["中", 1]},
        {"text": "b", "s": None},
    ]
    path.write_bytes(lines(rows))
    fields = {"metadata": ["s", "n", "x", "b", "l", "nowhere"]}
    first, second = source(path, fields=fields).documents(Path)
    assert dict(first.metadata) == {
        "s": "as is \N{GRINNING FACE}",
        "n": "3",
        "x": "0.5",
        "b": "true",
        "l": '["中", 1]',
    }
    assert dict(second.metadata) == {}


def test_half_a_surrogate_pair_in_metadata_is_rejected(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "x", "s": "\\udc00"}')
    assert texts(path) == ["x"]
    with pytest.raises(DataError, match="half a surrogate pair in the s"):
        texts(path, fields={"metadata": ["s"]})


def test_a_line_of_just_the_limit_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = b'{"text": "%s"}' % (b"x" * 100)
    for end in (b"\n", b"\r\n", b""):
        path.write_bytes(line + end)
        assert texts(path, longest_record=len(line)) == ["x" * 100]
        with pytest.raises(DataError, match=r"rows\.jsonl:1: .* bytes long; longest_record is"):
            texts(path, longest_record=len(line) - 1)


def lines_of_fields(path, *names):
    path.write_text("".join(f'{{"{name}": "x"}}\n' for name in names))


@pytest.mark.parametrize("most", [0, 19, 0.5])
def test_check_names_a_field_that_no_first_record_has(tmp_path, most):
    (tmp_path / "0.jsonl").write_text("\n \n")
    lines_of_fields(tmp_path / "1.jsonl", *["body"] * 20, "text")
    source = JsonlSource(path=str(tmp_path), max_rejected=most)
    with pytest.raises(DataError) as caught:
        source.check(Path)
    said = f"{tmp_path}/1.jsonl:1: no field 'text' for the text (fields: body); so it is with all"
    assert str(caught.value).startswith(f"{said} of its first 20 records; name the right field")


@pytest.mark.parametrize(
    ("names", "most"),
    [
        (["body"] * 19 + ["text"], 0),  # one has it
        (["body"] * 20, 20),  # as many are borne
        (["body"] * 3, 0.5),  # there may be more elsewhere
        ([], 0),
    ],
)
def test_check_refuses_no_source_that_may_be_read(tmp_path, names, most):
    lines_of_fields(tmp_path / "1.jsonl", *names)
    (tmp_path / "2.jsonl").write_text("\n")
    JsonlSource(path=str(tmp_path), max_rejected=most).check(Path)


def test_check_reads_no_more_than_it_looks_at(tmp_path, monkeypatch):
    lines_of_fields(tmp_path / "1.jsonl", *["text"] * 50)
    read = []
    parse = jsonl._parsed
    monkeypatch.setattr(jsonl, "_parsed", lambda line: read.append(line) or parse(line))
    JsonlSource(path=str(tmp_path)).check(Path)
    assert len(read) == 20
