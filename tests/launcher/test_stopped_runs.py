"""`onward run` itself: stopped by signals, ended when it hangs, resumed by the same command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.run_folder import RunFolder
from tests.launcher.pretraining import (
    STAGE,
    make_data,
    processes_of,
    saved,
    until,
    write_recipe,
)
from tests.warm import ROOT

pytestmark = [pytest.mark.processes, pytest.mark.grid, pytest.mark.timeout(1200)]


def start(recipe: Path, operators: dict[str, str], **changes: str) -> subprocess.Popen[str]:
    environment = os.environ | operators | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launcher", "run", str(recipe), "--processes", "2"]
    return subprocess.Popen(
        command,
        env=environment | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_same_command_goes_on_after_any_end(tmp_path: Path, operators: dict[str, str]) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(make_data(tmp_path), output, steps=3000, checkpoint={"every": 2000})
    folder = RunFolder(output)
    metrics = output / STAGE / "metrics.jsonl"
    # As Slurm does it: every process gets the signal, deepspeed's own die of it.
    process = start(recipe, operators)
    until(lambda: metrics.exists() and metrics.stat().st_size)
    for pid in processes_of(output):
        os.kill(pid, signal.SIGUSR1)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    (first,) = saved(output)
    assert f"stage dapt: stopped after step {first} of 3000, its state saved" in said
    assert processes_of(output) == []
    status = folder.status(STAGE)
    assert status is not None
    assert status.error is not None
    assert (status.state, status.error.exit_code) == ("stopped", 75)
    # To the command alone; and it goes on.
    process = start(recipe, operators)
    until(lambda: metrics.read_bytes().count(b"\n") > first + 5)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert "SIGTERM: waiting up to 60 s for the state to be saved" in said
    assert max(saved(output)) > first + 5
    assert processes_of(output) == []


def test_a_run_with_a_stopped_rank_ends_and_names_it(
    tmp_path: Path, operators: dict[str, str]
) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(make_data(tmp_path), output, hang_after=12.0)
    process = start(recipe, operators, ONWARD_FAULT="stop@backward:rank=1,step=6")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 5, said
    rank = json.loads((output / STAGE / "launch" / "rank-1.json").read_text())
    assert f"rank 1 (process {rank['pid']} on {rank['host']}) gives no sign: it is stopped" in said
    assert processes_of(output) == []
