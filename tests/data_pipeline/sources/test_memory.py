"""No record can fill the memory, however long: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

ROOT = Path(__file__).parents[3]
MEASURED = """
import json, resource, sys
from pathlib import Path
import pyarrow as pa
from pydantic import TypeAdapter
from data_pipeline.sources import Rejected, Source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

source = TypeAdapter(Source).validate_python(json.loads(sys.argv[1]))
before = peak()
items = [item for part in source.parts(Path) for item in part.read()]
rejected = [item.reason for item in items if isinstance(item, Rejected)]
good = [item.text for item in items if not isinstance(item, Rejected)]
print(json.dumps({"mib": peak() - before, "rejected": rejected, "good": good}))
"""
GIBIBYTE = 1 << 30


def measured(**config):
    config = {"longest_record": 1 << 20} | config
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "size"), [("jsonl", GIBIBYTE), ("text", GIBIBYTE >> 2), ("csv", GIBIBYTE >> 2)]
)
def test_a_file_without_a_line_end_for_long(tmp_path, name, size):
    path = tmp_path / {"jsonl": "a.jsonl", "text": "a.txt", "csv": "a.csv"}[name]
    with path.open("wb") as stream:  # with a hole that takes no room
        stream.seek(size)
        stream.write(b"\n\n" + {"jsonl": b'{"text": "x"}', "text": b"x", "csv": b"x"}[name])
    more = {"text": {"documents_are": "paragraphs"}, "csv": {"columns": ["text"]}}
    found = measured(name=name, path=str(path), **more.get(name, {}))
    assert found["rejected"] == [f"{size + 1:,} bytes long; longest_record is 1,048,576"]
    assert found["good"] == ["x"]
    assert found["mib"] < 80


def test_a_packed_line_of_a_gibibyte(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    block = bytes(1 << 24)
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as stream:
        for _ in range(GIBIBYTE // len(block)):
            stream.write(block)
        stream.write(b'\n{"text": "x"}\n')
    assert path.stat().st_size < 1 << 20
    found = measured(name="jsonl", path=str(path))
    assert (len(found["rejected"]), found["good"]) == (1, ["x"])
    assert found["mib"] < 80
