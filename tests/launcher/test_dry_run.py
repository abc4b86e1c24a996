"""--dry-run tells what would be started; it starts nothing, writes nothing, shows no secret."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from configs.errors import RecipeError
from launcher import cli
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.dry_run import lines, rehearse
from launcher.placement import Placement
from tests.launcher.fakes import Fakes
from tests.launcher.toy import Toy


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path)
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    (made.folder / "pdsh").symlink_to("/bin/true")
    return made


def toy(folder: Path) -> Toy:
    stages = {
        "first": {"kind": "write", "text": "1"},
        "share": {"kind": "spread", "inputs": ["stage:first"]},
        "crew": {"kind": "crew", "inputs": ["stage:share"]},
        "more": {"kind": "crew", "inputs": ["stage:crew"]},
    }
    return Toy(name="toy", output=folder / "a run", seed=1, stages=stages)  # type: ignore[arg-type]


def conductor(folder: Path, placement: Placement) -> Conductor:
    return Conductor(toy(folder), Request(), placement, print, lambda names, world: None)


def test_every_group_on_several_hosts(tmp_path: Path, fakes: Fakes) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node-1 slots=2 # a secret: canary\nnode-2 slots=2\n")
    given = {
        "PATH": f"{fakes.folder}",
        "HF_TOKEN": "canary",
        "GLOO_SOCKET_IFNAME": "eth0",
        "FI_X": "a b",
        "SLURM_JWT": "canary",
    }
    placed = Placement(
        hostfile=hosts, environment=given, exclude="node-2:0", master_addr="10.0.0.1"
    )
    before = sorted(tmp_path.iterdir())
    told = rehearse(conductor(tmp_path, placed))
    assert sorted(tmp_path.iterdir()) == before
    assert fakes.all_notes() == ""
    assert [(group["in"], group["stages"]) for group in told["groups"]] == [
        ("this process", ["first"]),
        ("a launch", ["share"]),
        ("a launch", ["crew", "more"]),
    ]
    share, crew = told["groups"][1:]
    assert (share["processes"], crew["processes"]) == (2, 3)
    assert crew["hosts"][1] == {"name": "node-2", "processes": 1, "slots": [1]}
    assert crew["hostfile"] == ["node-1 slots=2", "node-2 slots=2"]
    assert "--include=node-1:0,1@node-2:1" in crew["command"]
    # Another host would have to be asked for a port.
    assert "--master_port=ASKED-OF-RANK-0" in crew["command"]
    assert crew["passed"]["GLOO_SOCKET_IFNAME"] == "eth0"
    assert crew["passed"]["FI_X"] == "a b"
    assert "HF_TOKEN" not in {*crew["passed"], *crew["set"], *crew["launcher_gets"]}
    text = "\n".join(lines(told))
    assert shlex.join(crew["command"]) in text
    assert "canary" not in text + json.dumps(told)


def test_on_this_machine_the_command_is_what_would_run(tmp_path: Path) -> None:
    told = rehearse(conductor(tmp_path, Placement(processes=2, port=20_001)))
    group = told["groups"][2]
    assert group["stages"] == ["crew", "more"]
    assert group["command"][1:6] == [
        *("-m", "deepspeed.launcher.runner", "--hostfile=/dev/null", "--num_gpus=2"),
        "--master_port=20001",
    ]
    assert group["launcher_gets"] == "all"
    assert not (tmp_path / "a run").exists()


def test_the_option_answers_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.recipe import RECIPES

    monkeypatch.chdir(tmp_path)
    for more in ([], ["--json"]):
        words = ["onward", "run", str(RECIPES / "quickstart.yaml"), "--dry-run", *more]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
        said = capsys.readouterr().out
        assert "deepspeed.launcher.runner" in said
    assert json.loads(said)["groups"][-1]["stages"] == ["report"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ONWARD_JOIN_SECONDS", "ONWARD_LAUNCHER_SILENCE"])
def test_waiting_times_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name}=soon: expected seconds"):
        rehearse(conductor(tmp_path, Placement(processes=2, environment={name: "soon"})))
