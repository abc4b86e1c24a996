"""A report tells of restarts where there were any, and nothing of them elsewhere."""

import json
import re
from typing import Any

import pytest

from downstream.records import write_jsonl
from downstream.report import make_report
from downstream.reporting.interruptions import interruptions
from tests.downstream.reporting import facts
from tests.downstream.reporting.test_report import Page

LINE: dict[str, Any] = {
    "time": "2026-01-01T00:01:00+00:00",
    "after_exit_code": 5,
    "kind": "killed",
    "message": "stage pre: rank 1 | <b>killed</b>",
    "stage": "pre",
    "step": 10,
    "hosts": ["node-1"],
    "left_out": {"node-2": "failed 2 times"},
    "waited_seconds": 1.0,
    "lost_seconds": 75.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = facts.run_folder(tmp_path_factory.mktemp("restarted"))
    write_jsonl(folder / "restarts.jsonl", [LINE, {**LINE, "stage": "evaluate", "step": None}])
    starts = [{"step": 0, "time": f"2026-01-01T00:0{minute}:25+00:00"} for minute in (0, 1)]
    write_jsonl(folder / "pre" / "starts.jsonl", starts)
    return make_report(folder)


def test_goodput_is_of_the_steps_that_count(run):
    found = interruptions(run.parents[1])
    (goodput,) = found.goodput
    assert (goodput.stage, goodput.starts) == ("pre", 2)
    assert (goodput.useful_seconds, goodput.wall_seconds) == (40.0, 100.0)
    assert goodput.goodput == pytest.approx(0.4)
    told = json.loads((run.parent / "report.json").read_text())["interruptions"]
    assert told["restarts"][0] == LINE
    assert told["goodput"][0]["goodput"] == pytest.approx(0.4)


def test_the_page_has_them(run):
    page = Page(run.read_text())
    assert page.open == []
    assert "killed (exit code 5) pre 10 1 min 15 s 1.0 s node-1 ; without node-2" in (
        page.text.replace("node-1;", "node-1 ;")
    )
    assert "rank 1 | <b>killed</b>" in page.text
    assert "pre 2 40.0 s 1 min 40 s 40.0 %" in page.text


def test_so_has_the_markdown(run):
    text = (run.parent / "report.md").read_text()
    section = text.partition("## Restarts\n\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    assert len(table) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}
    assert "goodput 40.0 %" in section


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "restarts.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:40] + "\n3\n" + json.dumps(LINE))
    assert interruptions(tmp_path).restarts == [LINE, LINE]


def test_without_restarts_nothing_is_said(tmp_path):
    page = make_report(facts.run_folder(tmp_path))
    assert "Restarts" not in page.read_text()
    assert "Restarts" not in (page.parent / "report.md").read_text()
    assert "interruptions" not in json.loads((page.parent / "report.json").read_text())
