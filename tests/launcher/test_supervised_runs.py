"""`onward run --supervise` itself: ranks and the command are killed, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LaunchError
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.placement import Placement
from launcher.policy import Policy
from launcher.run_folder import RunFolder
from tests.launcher.pretraining import (
    STAGE,
    Launches,
    make_data,
    numbers,
    processes_of,
    until,
)
from tests.launcher.toy import Toy
from tests.warm import ROOT, WarmWorkers

pytestmark = [pytest.mark.processes, pytest.mark.grid, pytest.mark.timeout(1200)]
LONG = {"steps": 120, "checkpoint": {"every": 10}}


def start(recipe: Path, operators: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", "run", str(recipe), "--processes", "2"]
    return subprocess.Popen(
        [*command, "--supervise"],
        env=os.environ | operators | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def restarts(output: Path) -> list[dict[str, Any]]:
    path = RunFolder(output).restarts
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_killed_ranks_and_a_killed_command_leave_no_trace_in_the_numbers(
    tmp_path: Path, operators: dict[str, str], warm: WarmWorkers
) -> None:
    data = make_data(tmp_path)
    control = Launches(warm, data, tmp_path / "control", **LONG)
    assert all(ended.code == 0 for ended in control.run())
    output = tmp_path / "run"
    recipe = Launches(warm, data, output, **LONG).recipe
    metrics = output / STAGE / "metrics.jsonl"

    def kill_a_rank(step: int) -> None:
        until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > step)
        left = json.loads((output / STAGE / "launch" / "rank-1.json").read_text())
        os.kill(left["pid"], signal.SIGKILL)

    process = start(recipe, operators)
    kill_a_rank(12)
    until(lambda: restarts(output))
    until(lambda: metrics.read_bytes().count(b"\n") > 40)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not processes_of(output))
    process = start(recipe, operators)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert processes_of(output) == []
    (line,) = restarts(output)
    assert (line["kind"], line["after_exit_code"], line["hosts"]) == ("killed", 5, ["localhost"])
    assert line["step"] % 10 == 0
    assert line["step"] > 0
    assert "rank 1" in line["message"]
    assert "killed by SIGKILL" in line["message"]
    assert numbers(output) == numbers(tmp_path / "control")


def test_a_launch_that_is_killed_each_time_is_given_up(
    tmp_path: Path, operators: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in operators.items():
        monkeypatch.setenv(name, value)
    stages: Any = {"crew": {"kind": "crew", "act": "die"}}
    toy = Toy(name="toy", output=tmp_path / "run", seed=1, stages=stages)
    told: list[str] = []
    placement = Placement(processes=2, module="tests.launcher.toy")
    policy = Policy(restarts=1)
    conductor = Conductor(toy, Request(), placement, told.append, lambda *_: None, policy)
    with pytest.raises(LaunchError, match="rank 1"):
        conductor.run()
    assert "not started again: 1 restarts have brought no progress (--restarts)" in told
    (kept,) = (tmp_path / "run" / "crew" / "failed-starts").iterdir()
    assert {path.name for path in kept.glob("rank-*.json")} == {"rank-0.json", "rank-1.json"}
    (line,) = restarts(tmp_path / "run")
    assert (line["stage"], line["step"]) == ("crew", None)
    assert processes_of(tmp_path / "run") == []
