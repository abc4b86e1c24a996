"""Stages that hosts share: one process each, no torch, the first one's answer counts."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from configs.errors import DataError, LaunchError, RecipeError
from configs.stage import Share
from launcher import agreement, chain, environment
from launcher.chain import Request
from launcher.command import Launch, deepspeed_command
from launcher.conduct import Conductor
from launcher.hosts import Host, one_a_host
from launcher.outcome import read_outcomes
from launcher.placement import Placement
from launcher.run_folder import RunFolder
from tests.launcher.toy import Toy

HOSTS = "node-a slots=4\nnode-b slots=8\n"


def toy(folder: Path, **stages: dict[str, Any]) -> Toy:
    return Toy(name="toy", output=folder / "run", seed=1, stages=stages)  # type: ignore[arg-type]


def conductor(recipe: Toy, placement: Placement, told: list[str] | None = None) -> Conductor:
    tell = (lambda line: None) if told is None else told.append
    return Conductor(recipe, Request(), placement, tell, lambda names, world: None)


def test_a_launch_over_hosts_has_one_process_on_each(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text(HOSTS)
    placement = Placement(hostfile=hostfile)
    assert placement.world() == 12
    spread = placement.for_stage("hosts")
    assert spread.hosts() == one_a_host(placement.hosts()) == (Host("node-a", 1), Host("node-b", 1))
    assert spread.world() == 2
    assert placement.chosen_launcher() == "pdsh"
    launch = Launch(Path("r.yaml"), ["p"], 4000, Path("l"), hosts=spread.hosts(), launcher="pdsh")
    assert "--force_multi" in deepspeed_command(launch, ["deepspeed"])


@pytest.mark.parametrize("hosts", ["", "localhost slots=4\n"])
def test_on_one_machine_it_runs_here(tmp_path: Path, hosts: str) -> None:
    (tmp_path / "hosts").write_text(hosts)
    placement = Placement(hostfile=tmp_path / "hosts" if hosts else None)
    conductor(toy(tmp_path, p={"kind": "spread"}), placement).run()
    status = RunFolder(tmp_path / "run").status("p")
    assert status is not None
    assert (status.state, status.fingerprint) == ("done", "made by 1")


def toy_file(folder: Path, *stages: str) -> Path:
    path = folder / "r.yaml"
    lines = (f"  {stage}\n" for stage in stages)
    path.write_text(f"name: toy\noutput: {folder}/run\nstages:\n{''.join(lines)}")
    return path


def workers(recipe: Path, ranks: str, *words: str) -> list[tuple[int, str]]:
    """Exit code and last words of some of two, as deepspeed starts them."""
    command = [sys.executable, "-m", "tests.launcher.toy", str(recipe), *words]
    started = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"PYTHONPATH": str(environment.PROJECT), "RANK": rank, "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    return [(process.wait(), process.communicate()[1]) for process in started]


@pytest.mark.processes
def test_each_host_gets_its_share_and_needs_no_torch(tmp_path: Path) -> None:
    recipe = toy_file(
        tmp_path,
        "p: {kind: spread}",
        "q: {kind: spread, inputs: ['stage:p']}",
        "r: {kind: spread, fails_on: 1}",
    )
    assert [code for code, _ in workers(recipe, "10", "p", "q")] == [0, 0]
    run = RunFolder(tmp_path / "run")
    for name in "pq":
        status = run.status(name)
        assert status is not None
        assert (status.state, status.fingerprint) == ("done", "made by 2")
        for host in range(2):
            facts = json.loads((run.stage(name) / f"host-{host}.json").read_text())
            assert facts == {"count": 2, "torch": False, "key": status.key}
    ((code, said),) = workers(recipe, "1", "r")
    assert code == DataError.exit_code
    assert "host 1 has no such file" in said


@pytest.mark.processes
@pytest.mark.parametrize("comes", ["before", "after"])
def test_a_stage_that_hosts_of_other_software_share_is_never_done(
    tmp_path: Path, comes: str
) -> None:
    recipe = toy_file(tmp_path, "p: {kind: spread}")
    launch, folder = tmp_path / "launch", tmp_path / "run" / "p"
    launch.mkdir()
    other = {**agreement.facts(), "host": "node-2", "Onward's code": "another"}
    card = launch / "card--1.json"
    words = ("p", f"--report_to={launch}")
    if comes == "before":
        card.write_text(json.dumps(other))
        ((code, _),) = workers(recipe, "0", *words)
        assert not (folder / "host-0.json").exists()
    else:
        with ThreadPoolExecutor() as pool:
            told = pool.submit(workers, recipe, "0", *words)
            while not (folder / "host-0.json").exists():
                assert not told.done()
                time.sleep(0.05)
            card.write_text(json.dumps(other))
            (folder / "host-1.json").touch()
            ((code, _),) = told.result()
    assert code == LaunchError.exit_code
    (outcome,) = read_outcomes(launch)
    assert "Onward's code: " in outcome.message
    assert "another on node-2. Install the same everywhere" in outcome.message
    status = RunFolder(tmp_path / "run").status("p")
    assert status is None or status.state != "done"


def test_stages_of_two_kinds_do_not_share_a_launch(tmp_path: Path) -> None:
    recipe = toy_file(tmp_path, "p: {kind: spread}", "c: {kind: crew}")
    code = (
        "import sys; sys.argv[1:] = [sys.argv[1], 'p', 'c'];"
        "from tests.launcher.toy import load_toy; from launcher.worker import main;"
        "main(load=load_toy)"
    )
    command = [sys.executable, "-c", code, str(recipe)]
    done = subprocess.run(
        command, cwd=environment.PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == RecipeError.exit_code
    assert "give those of one kind" in done.stderr


def test_a_host_waits_for_the_inputs_and_then_says_what_lacks(tmp_path: Path) -> None:
    recipe = toy(tmp_path, p={"kind": "spread"}, q={"kind": "spread", "inputs": ["stage:p"]})
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match="stage q reads from stage p, which is not done"):
        chain.join(recipe, run, "q", Share(1, 2), seconds=0.1)
    context = chain.join(recipe, run, "p", Share(1, 2))
    assert context is not None
    assert context.share == Share(1, 2)
    assert run.status("p") is None
    conductor(recipe, Placement()).run()
    assert chain.join(recipe, run, "q", Share(1, 2)) is None
    assert chain.join(recipe, run, "q", Share(0, 2)) is None


def test_what_a_done_stage_was_made_from_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy(tmp_path, p={"kind": "spread"}, w={"kind": "write", "text": "1"})
    conductor(recipe, Placement()).run()
    said: list[str | None] = [None]
    monkeypatch.setattr("tests.launcher.toy.Spread.outdated", lambda stage, context: said[0])
    conductor(recipe, Placement()).run()
    said[0] = "a.jsonl: its content has changed"
    for act in ("check", "run"):
        with pytest.raises(DataError, match=r"stage p is done.*a\.jsonl.*--redo p"):
            getattr(conductor(recipe, Placement()), act)()
    again = Conductor(
        recipe, Request(redo=frozenset({"p"})), Placement(), print, lambda names, world: None
    )
    again.run()


def test_a_host_waits_until_another_recipes_attempt_is_gone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    chain.enter(toy(tmp_path, p={"kind": "spread", "fails_on": 1}), run, "p")
    (run.stage("p") / "host-0.json").touch()
    recipe = toy(tmp_path, p={"kind": "spread"})
    with pytest.raises(DataError, match="another recipe's attempt lies there"):
        chain.join(recipe, run, "p", Share(1, 2), seconds=0.1)
    assert chain.join(recipe, run, "p", Share(0, 2)) is not None
    assert not (run.stage("p") / "host-0.json").exists()
    assert chain.join(recipe, run, "p", Share(1, 2)) is not None
