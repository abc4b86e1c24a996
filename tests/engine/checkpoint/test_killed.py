"""SIGKILL before every single file operation of a save: there is always an intact checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("scene", ["fresh", "over_a_broken_one", "fresh_async"])
def test_a_kill_at_any_point_leaves_the_newest_intact(tmp_path: Path, scene: str) -> None:
    module = "tests.engine.checkpoint.kill_everywhere"
    program = [sys.executable, "-m", module, str(tmp_path), scene]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    deaths = [report for report in reports if not report["ended"]]
    assert len(deaths) > 30
    assert {report["alive"] for report in deaths} == {4, 8}
    assert all(report["whole"] for report in reports)
    assert reports[-1]["ended"]
    assert reports[-1]["alive"] == 8
    # The next save clears what the killed one left.
    assert all(report["afterwards"] == [] for report in reports)
    # Once the new one bears its name it stays the answer: no later operation undoes it.
    alive = [report["alive"] for report in reports]
    assert alive == sorted(alive)
