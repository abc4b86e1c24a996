"""The table of all benchmarks: rows, details, failures, and who is in it."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import ALL, MODULES
from benchmarks.everything import one
from benchmarks.table import Machine, Row, machine, markdown, without_folders, write

HERE = Machine("A processor", 2, 24, "0.1, 0.1, 0.1", "3.11", {"torch": "2.13"}, "abc", "today")
RESULT = {
    "id": "P1",
    "value": 1.02,
    "target": 1.03,
    "reached": True,
    "details": [{"stage": 0, "ratio": 1.0}, {"stage": 1, "kinds": {"a": 1, "b": [2, 3]}}],
}
ROWS = [
    Row("P1", "our loop", RESULT, "", 12.4),
    Row("P2", "theirs", {**RESULT, "reached": False}, "", 3.0),
    Row("P3", "gone", None, "ValueError: a | b", 1.0),
]


def test_every_row_has_a_line_and_its_details():
    lines = markdown(HERE, ROWS).splitlines()
    assert "| P1 | our loop | 1.02 | 1.03 | yes | 12 |" in lines
    assert "| P2 | theirs | 1.02 | 1.03 | **no** | 3 |" in lines
    assert "| P3 | gone | failed: ValueError: a \\| b |  |  | 1 |" in lines
    at = lines.index("## P1: our loop")
    assert lines[at + 2 : at + 6] == [
        "| stage | ratio | kinds |",
        "| --- | --- | --- |",
        "| 0 | 1.0 |  |",
        "| 1 |  | a 1, b 2, 3 |",
    ]
    assert lines[-1] == "Failed: ValueError: a | b"


def test_the_json_beside_it_says_the_same(tmp_path):
    write(tmp_path / "results" / "engine.md", HERE, ROWS)
    found = json.loads((tmp_path / "results" / "engine.json").read_text())
    assert found["machine"]["packages"] == {"torch": "2.13"}
    assert found["rows"][0]["result"] == RESULT
    assert found["rows"][2]["error"] == "ValueError: a | b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no such file: '/somewhere/private/a.json'", "no such file: 'a.json'"),
        ("/one/two: gone", "two: gone"),
        (
            "3.5 tokens/s, 1/2, https://example.org/a/b",
            "3.5 tokens/s, 1/2, https://example.org/a/b",
        ),
    ],
)
def test_folders_of_the_machine_are_not_told(text: str, told: str):
    assert without_folders(text) == told


def test_the_machine_names_no_host_and_no_folder():
    found = machine()
    text = json.dumps([found.processor, found.packages, found.commit, found.date])
    assert "/" not in text.replace("w/", "")
    assert found.cores >= 1
    assert "torch" in found.packages


def test_a_result_is_the_last_line_and_a_failure_the_last_word():
    said = f"print('built'); print({json.dumps(json.dumps(RESULT))})"
    assert one("P1", "ours", [sys.executable, "-c", said]).result == RESULT
    failed = one("P1", "ours", [sys.executable, "-c", "raise ValueError('/some/where/x: gone')"])
    assert failed.result is None
    assert failed.error == "ValueError: x: gone"
    silent = one("P1", "ours", [sys.executable, "-c", "raise SystemExit(3)"])
    assert silent.error == "exit code 3"


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_registered_and_says_what_it_is(name: str):
    module = import_module(f"benchmarks.{MODULES[name]}")
    assert module.__doc__.startswith(f"{name}: ")
    assert callable(module.measure)
    assert Path(module.__file__).is_relative_to(Path(__file__).parents[2] / "benchmarks")
