"""Launches by the real deepspeed launcher: work, an error, a killed rank, a signal to the run."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LaunchError, RecipeError, ResourceError
from engine.watchdog import VERDICT
from launcher import environment
from launcher.blame import blame
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.hosts import Host
from launcher.outcome import Outcome
from launcher.placement import Placement
from launcher.run_folder import RunFolder
from launcher.start import launch_stages
from tests.launcher.toy import Toy

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _on_the_cpu(operators: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in operators.items():
        monkeypatch.setenv(name, value)


def chain(folder: Path, **stages: dict[str, Any]) -> Toy:
    return Toy(name="toy", output=folder / "run", seed=1, stages=stages)  # type: ignore[arg-type]


def run(toy: Toy, placement: Placement | None = None, told: list[str] | None = None) -> None:
    placement = placement or Placement(processes=2, module="tests.launcher.toy")
    tell = [].append if told is None else told.append
    Conductor(toy, Request(), placement, tell, lambda names, world: None).run()


def gone(pid: int) -> bool:
    """Ended, or a zombie that nobody reaps here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_stages_share_a_launch_and_an_error_comes_through_as_one_message(tmp_path: Path) -> None:
    told: list[str] = []
    toy = chain(
        tmp_path,
        first={"kind": "write", "text": "1"},
        work={"kind": "crew", "inputs": ["stage:first/out.txt"]},
        broken={"kind": "crew", "act": "refuse", "inputs": ["stage:work"]},
        never={"kind": "crew", "inputs": ["stage:broken"]},
    )
    with pytest.raises(RecipeError, match=r"^stage broken: what rank 1 says$"):
        run(toy, told=told)
    assert "work, broken, never: starting 2 processes on the CPU" in told
    folder = RunFolder(tmp_path / "run")
    found = {name: folder.status(name) for name in toy.stages}
    states = {name: status.state if status else None for name, status in found.items()}
    assert states == {"first": "done", "work": "done", "broken": "failed", "never": None}
    assert found["work"] is not None
    assert found["work"].fingerprint == "2"
    assert found["work"].workers is not None
    assert found["work"].workers.processes == 2
    assert (found["work"].workers.threads or 0) >= 1
    assert found["broken"] is not None
    assert found["broken"].error is not None
    assert found["broken"].error.exit_code == 2
    assert "spawned with command" in (tmp_path / "run/work/launcher.log").read_text()


def test_a_launch_that_cannot_begin_leaves_no_earlier_ones_words(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    folder = run.launch("base")
    folder.mkdir(parents=True)
    (folder / "rank-0.json").write_text(Outcome(rank=0, host="node-1", pid=9).model_dump_json())
    (folder / VERDICT).touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        placement = Placement(processes=1, port=taken.getsockname()[1])
        with pytest.raises(ResourceError, match="in use by process") as raised:
            launch_stages(run, ["base"], [], placement, lambda line: None)
    found = blame(LaunchError(str(raised.value)), folder, [Host("node-1", 1), Host("node-2", 1)])
    assert (found.kind, found.hosts) == ("lost", ())


def test_a_killed_rank_is_named_with_its_signal_also_from_a_hostfile(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    placement = Placement(hostfile=hostfile, module="tests.launcher.toy")
    with pytest.raises(LaunchError, match=r"stage crew: rank 1 \(process \d+ on .*SIGKILL"):
        run(chain(tmp_path, crew={"kind": "crew", "act": "die"}), placement)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: toy\noutput: {tmp_path}/run\nstages:\n  crew: {{kind: crew, act: wait}}\n"
    )
    command = [sys.executable, "-m", "tests.launcher.toy_run", str(recipe)]
    env = os.environ | {"PYTHONPATH": str(environment.PROJECT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / f"run/crew/pid-{rank}" for rank in range(2)]
    end = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in files):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    end = time.monotonic() + 30
    while not all(gone(int(file.read_text())) for file in files):
        assert time.monotonic() < end
        time.sleep(0.1)
    status = RunFolder(tmp_path / "run").status("crew")
    assert status is not None
    assert status.state == ("stopped" if number == signal.SIGTERM else "running")
