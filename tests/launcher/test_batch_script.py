"""The batch file: what it asks Slurm for, that nothing in it is changed, and when it requeues."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import RecipeError
from launcher.batch_script import Job, batch_script, chosen_stages, parse_settings
from launcher.recipe import RECIPES
from tests.launcher.test_cli import onward
from tests.launcher.toy import Toy

HOSTILE = "a $HOME `id` \"b\" 'c'; rm -rf x"


def recipe(folder: Path, name: str = "toy") -> Toy:
    stages = {
        "first": {"kind": "write", "text": "1"},
        "crew": {"kind": "crew", "inputs": ["stage:first"]},
        "more": {"kind": "crew", "inputs": ["stage:crew"]},
        "last": {"kind": "write", "text": "2"},
    }
    return Toy(name=name, output=folder / "run", seed=1, stages=stages)  # type: ignore[arg-type]


def job(folder: Path, **changes: object) -> Job:
    loaded = recipe(folder)
    facts: dict[str, object] = {
        "recipe": folder / "r.yaml",
        "loaded": loaded,
        "words": [],
        "stages": list(loaded.stages),
        "nodes": 2,
        "tasks": 4,
        "working": folder,
    }
    return Job(**(facts | changes))  # type: ignore[arg-type]


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_what_it_asks_for(tmp_path: Path) -> None:
    settings = parse_settings(["qos=long", "--exclusive"])
    made = job(tmp_path, time="1-00:00:00", gpus_per_node=4, grace=100, settings=settings)
    assert directives(batch_script(made)) == [
        "--job-name=onward-toy",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--time=1-00:00:00",
        "--signal=B:USR1@160",
        "--requeue",
        "--open-mode=append",
        "--qos=long",
        "--exclusive",
    ]


def test_a_name_is_just_a_name(tmp_path: Path) -> None:
    text = batch_script(job(tmp_path, loaded=recipe(tmp_path, "; rm -rf /\n#SBATCH --wrap=x")))
    assert directives(text)[0] == "--job-name=onward-rm--rf-SBATCH---wrap-x"
    assert "rm -rf" not in text


@pytest.mark.parametrize(
    ("word", "said"),
    [("nodes=3", "set by this command"), ("A=1", "expected KEY=VALUE"), ("=x", "expected KEY")],
)
def test_settings_that_sbatch_has_not(word: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_settings([word])


def test_a_value_that_sbatch_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    for changes in ({"partition": "a b"}, {"settings": {"comment": "x\n#SBATCH --y"}}):
        with pytest.raises(RecipeError, match="sbatch reads only letters"):
            batch_script(job(tmp_path, **changes))
    with pytest.raises(RecipeError, match="no stage 'crow' in this recipe; did you mean 'crew'"):
        chosen_stages(recipe(tmp_path), ["crow"])


def test_in_a_container_each_group_of_stages_is_a_step(tmp_path: Path) -> None:
    steps = [
        shlex.split(line)[:-1]
        for line in batch_script(job(tmp_path, container="nvcr.io#a/b")).splitlines()
        if line.startswith("    begin ")
    ]
    mounts = [
        "--container-image=nvcr.io#a/b",
        f"--container-mounts={tmp_path}:{tmp_path},{tmp_path}/run:{tmp_path}/run",
        f"--container-workdir={tmp_path}",
    ]
    python = ["python3", "-P", "-m"]
    one, all_ranks = ["--nodes=1", "--ntasks=1"], ["--nodes=2", "--ntasks-per-node=4"]
    file = str(tmp_path / "r.yaml")
    common = ["--kill-on-bad-exit=1", *mounts, *python]
    assert [step[1:-1] for step in steps] == [
        ["srun", *one, *common, "launcher", "run", file, "first", "--grace=120"],
        ["srun", *all_ranks, *common, "launcher.worker", file, "crew", "more", "--grace=120"],
        ["srun", *one, *common, "launcher", "run", file, "last", "--grace=120"],
    ]
    apptainer = batch_script(job(tmp_path, container="/images/a b.sif", gpus_per_node=1))
    assert f"apptainer exec --nv --bind {tmp_path} " in apptainer
    assert "'/images/a b.sif' python3 -P -m launcher.worker" in apptainer
    with pytest.raises(RecipeError, match="write the settings into the recipe"):
        batch_script(job(tmp_path, container="x", words=["seed=2"]))


class Scene:
    """The file's commands as stand-ins, and the file run by bash."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.log = folder / "log"
        self.program("squeue", "echo RUNNING")
        self.program("scontrol", f"echo scontrol $* >> {self.log}")
        self.program("python", "exit 75")
        monkeypatch.setattr(sys, "executable", str(self.programs / "python"))

    def program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def start(self, restarts: int = 0, **changes: object) -> "subprocess.Popen[str]":
        text = batch_script(job(self.folder, **changes))
        env = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        # As in a terminal, whose input does not end.
        entry, self.never_closed = os.pipe()
        try:
            return subprocess.Popen(
                ["bash", "-c", text], env=env, stdin=entry, stderr=subprocess.PIPE, text=True
            )
        finally:
            os.close(entry)

    def run(self, restarts: int = 0, **changes: object) -> tuple[int, str]:
        process = self.start(restarts, **changes)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said

    def requeued(self) -> int:
        return self.log.read_text().count("scontrol requeue 17") if self.log.exists() else 0


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_every_word_arrives_as_it_was(scene: Scene) -> None:
    scene.program("python", f'printf "%s\\0" "$@" > {scene.folder}/words; pwd > {scene.folder}/at')
    working = scene.folder / HOSTILE
    working.mkdir()
    file = working / "r;.yaml"
    words = ["crew", f"stages.crew.x={HOSTILE}"]
    assert scene.run(recipe=file, words=words, working=working) == (0, "")
    assert (scene.folder / "at").read_text() == f"{working}\n"
    assert (scene.folder / "words").read_text().split("\0")[:-1] == [
        *("-P", "-m", "launcher", "run", str(file), *words),
        *("--launcher", "slurm", "--processes", "4", "--grace=120"),
    ]


def test_a_run_that_saved_its_state_is_requeued_while_it_makes_progress(scene: Scene) -> None:
    for restarts in range(4):
        made = scene.folder / f"run/crew/status-{restarts}"
        made.mkdir(parents=True)
        scene.program(
            "python",
            f"mkdir -p {scene.folder}/run/s{restarts}; "
            f'echo \'"state": "done"\' > {scene.folder}/run/s{restarts}/status.json; '
            "exit 75",
        )
        assert scene.run(restarts)[0] == 75
        assert scene.requeued() == restarts + 1


@pytest.mark.parametrize("ends", [5, 75, 137, 138])
def test_a_run_without_progress_is_requeued_once(scene: Scene, ends: int) -> None:
    scene.program("python", f"exit {ends}")
    assert scene.run(0)[0] == ends
    code, said = scene.run(1)
    assert (code, scene.requeued()) == (ends, 1)
    assert "twice without progress; not requeued" in said


def test_a_job_that_only_ever_loses_its_host_comes_to_an_end(scene: Scene) -> None:
    scene.program("python", "exit 0")
    assert [scene.run(restarts)[0] for restarts in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 6, 7, 130, 143])
def test_other_ends_are_ends(scene: Scene, code: int) -> None:
    scene.program("python", f"exit {code}")
    assert scene.run()[0] == code
    assert scene.requeued() == 0


def test_a_cancelled_job_is_not_requeued(scene: Scene) -> None:
    scene.program("squeue", "echo COMPLETING")
    assert scene.run()[0] == 75
    assert scene.requeued() == 0


def test_the_signal_is_handed_on_and_the_save_waited_for(scene: Scene) -> None:
    scene.program(
        "python",
        f"trap 'sleep 0.5; exit 75' USR1; touch {scene.folder}/up; while :; do sleep 0.05; done",
    )
    process = scene.start()
    end = time.monotonic() + 30
    while not (scene.folder / "up").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert (process.returncode, scene.requeued()) == (75, 1)


@pytest.mark.parametrize("grace", ["nan", "inf", "0"])
def test_a_grace_that_is_no_number_of_seconds_is_refused(
    grace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "job.sbatch"
    words = ["launch-script", str(RECIPES / "quickstart.yaml"), "--nodes", "1"]
    words += ["--tasks-per-node", "1", "--output", str(output), "--grace"]
    assert onward(monkeypatch, *words, grace) == 2
    assert not output.exists()
    assert onward(monkeypatch, *words, "30") == 0
    assert "--grace=30" in output.read_text()


@pytest.mark.parametrize("time", ["12h", "90", "1-2:3", "00:61:00", "00:03:00", "00:00:00"])
def test_a_time_that_is_none_or_too_short(tmp_path: Path, time: str) -> None:
    with pytest.raises(RecipeError, match=f"--time {time}"):
        batch_script(job(tmp_path, time=time))
