"""Rows of the fault matrix that cost little, tried once."""

from pathlib import Path

import pytest

from benchmarks.faults import table
from benchmarks.faults.rows import Measured, Row, all_rows
from configs.errors import ResourceError

CHEAP = ("F08", "F18", "F25", "F26", "F29", "F30")
"""The others take minutes, or hosts; `make faults` tries them all."""
ROWS = {row_id: row for row_id, row in all_rows().items() if row_id in CHEAP}


@pytest.mark.processes
@pytest.mark.grid
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_promise_is_kept(
    row: Row, operators: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    for name, value in operators.items():
        monkeypatch.setenv(name, value)
    try:
        found = row.measure(1, tmp_path)
    except ResourceError as error:
        pytest.skip(str(error))
    assert found.is_kept, found.notes


@pytest.mark.parametrize(
    ("found", "kept"), [(Measured(2, 2), True), (Measured(1, 2), False), (Measured(0, 0), False)]
)
def test_a_promise_that_was_never_tried_is_not_kept(found: Measured, kept: bool) -> None:
    assert found.is_kept is kept


def test_the_page_keeps_what_was_not_tried_again(tmp_path: Path) -> None:
    results = tmp_path / "faults.json"
    told = {"id": "F01", "fault": "a|b", "promise": "c", "held": 1, "of": 2, "notes": ["why"]}
    told |= {"figures": {"seconds": 1.5}, "seconds": 3.0}
    table.put_rows({"F01": told}, results)
    table.put_campaign("## Runs\n\n| x |", results)
    table.put_rows({"F00": {**told, "id": "F00", "held": 0, "of": 0}}, results)
    page = results.with_suffix(".md").read_text(encoding="utf-8")
    assert "| F01 | a/b | c | 1 of 2 | seconds: 1.5 |" in page
    assert "| F00 | a/b | c | not run |" in page
    assert page.index("F00") < page.index("F01") < page.index("## Runs")
    assert "FAILED" in table.line(told)
