"""A launch becomes one deepspeed command line, and an environment that reaches every host."""

import dataclasses
import os
from pathlib import Path

import pytest

from configs.errors import RecipeError, ResourceError
from launcher import environment, spared, spelling
from launcher.command import Launch, deepspeed_command
from launcher.environment import (
    device_name,
    extensions_folder,
    threads,
    visible_gpus,
    worker_environment,
)
from launcher.exports import exports, format_exports, unpacked
from launcher.hosts import Host
from launcher.placement import Placement
from launcher.run_folder import RunFolder
from launcher.start import _describe, _warn_of_unusable_gpus, environments, plan_launch

RUN = Path("/runs/a")


def launch(**changes: object) -> Launch:
    facts: dict[str, object] = {
        "recipe": RUN / "recipe.yaml",
        "stages": ["base", "dapt"],
        "port": 4000,
        "folder": RUN / "base/launch",
        "processes": 2,
    }
    return Launch(**(facts | changes))  # type: ignore[arg-type]


def test_on_this_machine() -> None:
    assert deepspeed_command(launch(replace=["dapt"]), ["deepspeed"]) == [
        "deepspeed",
        "--hostfile=/dev/null",
        "--num_gpus=2",
        "--master_port=4000",
        "--module",
        "launcher.worker",
        "/runs/a/recipe.yaml",
        "base",
        "dapt",
        "--report_to=/runs/a/base/launch",
        "--grace=60",
        "--replace=dapt",
    ]


def test_on_several_hosts() -> None:
    hosts = (Host("n1", 4), Host("n2", 8))
    several = launch(hosts=hosts, hostfile=RUN / "hosts", launcher="pdsh", address="10.0.0.1")
    assert several.world == 12
    assert deepspeed_command(several, ["deepspeed"]) == [
        "deepspeed",
        "--hostfile=/runs/a/hosts",
        "--launcher=pdsh",
        "--force_multi",
        "--no_ssh_check",
        "--master_addr=10.0.0.1",
        "--master_port=4000",
        "--module",
        "launcher.worker",
        "/runs/a/recipe.yaml",
        "base",
        "dapt",
        "--report_to=/runs/a/base/launch",
        "--grace=60",
        "--folder=/",
    ]


def test_a_hostfile_that_names_this_machine_alone_needs_no_ssh() -> None:
    alone = launch(hosts=(Host("localhost", 2),), hostfile=RUN / "hosts")
    command = deepspeed_command(alone, ["deepspeed"])
    assert {"--no_ssh_check", "--master_addr=127.0.0.1"} <= set(command)


def test_chosen_gpus_are_named() -> None:
    command = deepspeed_command(launch(gpu_ids=[2, 5, 7]), ["deepspeed"])
    assert command[1:3] == ["--hostfile=/dev/null", "--include=localhost:2,5"]
    with pytest.raises(ResourceError, match="CUDA_VISIBLE_DEVICES=2 shows fewer"):
        deepspeed_command(launch(gpu_ids=[2]), ["deepspeed"])


@pytest.mark.parametrize("path", ["/runs/a b", "/runs/$HOME", "/runs/%n", "/runs/a;b", "/r'"])
def test_a_path_that_a_remote_shell_would_change_is_spelled(path: str) -> None:
    folder = Path(path)
    here = deepspeed_command(launch(recipe=folder, folder=folder), ["deepspeed"])
    assert path in here
    far = launch(
        recipe=folder, folder=folder, hosts=(Host("n1", 1),), hostfile=RUN, launcher="pdsh"
    )
    words = deepspeed_command(far, ["deepspeed"])
    words = words[words.index("launcher.worker") + 1 :]
    assert all(map(spelling.is_plain, (word.replace("+", "") for word in words)))
    assert spelling.read_if_spelled(words)[0] == path


def test_an_installation_whose_path_a_shell_would_change_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/opt/my tools/python")
    with pytest.raises(RecipeError, match="install them below a path of letters"):
        deepspeed_command(launch(hosts=(Host("n1", 1),), launcher="pdsh"), ["deepspeed"])


def test_workers_without_gpus_share_the_cores() -> None:
    made = worker_environment({"ONWARD_CACHE": "/cache"}, 2, gpus_here=0, core_count=6)
    assert made["DS_ACCELERATOR"] == "cpu"
    assert made["OMP_NUM_THREADS"] == "3"
    assert made["TORCH_EXTENSIONS_DIR"].startswith("/cache/extensions/torch-")
    assert (Path(made["PYTHONPATH"]) / "launcher/worker.py").is_file()
    assert "DS_ACCELERATOR" not in worker_environment({}, 2, gpus_here=2, core_count=6)


def test_what_the_user_set_stays() -> None:
    mine = {
        "OMP_NUM_THREADS": "7",
        "TORCH_EXTENSIONS_DIR": "/mine",
        "PYTHONPATH": "/first:/second",
        "DS_ACCELERATOR": "cuda",
    }
    made = worker_environment(mine, 4, gpus_here=0, core_count=1)
    assert made["PYTHONPATH"].endswith(":/first:/second")
    assert {name: made[name] for name in mine if name != "PYTHONPATH"} == {
        name: value for name, value in mine.items() if name != "PYTHONPATH"
    }
    assert extensions_folder(mine) == Path("/mine")


def test_visible_gpus_are_numbers() -> None:
    assert visible_gpus({}) is None
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 1"}) == [3, 1]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    with pytest.raises(RecipeError, match="expected numbers"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-8a1"})


def test_other_hosts_get_the_users_own_file_and_no_secret(tmp_path: Path) -> None:
    own = tmp_path / ".deepspeed_env"
    own.write_text("GLOO_SOCKET_IFNAME=eth1\n# a comment\n\nMINE=1=2\n")
    here = {"HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    here["ONWARD_LISTEN"] = "10.0.0.1"
    made = exports(here, [own, tmp_path / "absent"])
    assert made == {
        "GLOO_SOCKET_IFNAME": "eth1",
        "HF_HUB_OFFLINE": "1",
        "MINE": "1=2",
        "ONWARD_LISTEN": "10.0.0.1",
    }
    own.write_text("A=1\nbroken\n")
    with pytest.raises(RecipeError, match=r"\.deepspeed_env:2: expected NAME=value"):
        exports(here, [own])


def test_values_reach_other_hosts_literally() -> None:
    others = {"B": ' a $b "c" `d` \\e\n', "C": "eth0,eth1"}
    first, second = format_exports({"A": "plain/1", **others}).splitlines()
    assert first == "A=plain/1"
    name, _, value = second.partition("=")
    assert unpacked({name: value}) == others
    assert unpacked({}) == {}
    with pytest.raises(RecipeError, match="PYTHONPATH='a b' cannot reach other hosts unchanged"):
        format_exports({"PYTHONPATH": "a b"})


def test_a_machine_without_gpus_does_not_keep_other_hosts_from_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "has_gpus", lambda: False)
    # Set first, so that what is set below is taken back after the test.
    monkeypatch.setenv("DS_ACCELERATOR", "")
    monkeypatch.delenv("DS_ACCELERATOR")
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=2\n")
    placement = Placement(hostfile=tmp_path / "hosts", environment={})
    # As the command line does, after it has taken note of the user's environment.
    environment.settle_accelerator()
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    several = plan_launch(RunFolder(tmp_path / "run"), ["base"], [], placement, shown_only=True)
    passed, made = environments(several, placement)
    assert "DS_ACCELERATOR" not in {*passed, *made}
    assert _describe(several, made) == "3 processes on n1 (1), n2 (2)"
    asked = dataclasses.replace(placement, environment={"DS_ACCELERATOR": "cpu"})
    assert environments(several, asked)[0]["DS_ACCELERATOR"] == "cpu"


def test_the_device_is_named() -> None:
    assert _describe(launch(), {"DS_ACCELERATOR": "cpu"}) == "2 processes on the CPU"
    assert _describe(launch(processes=1), {}) == "1 process on 1 GPU"
    assert device_name({"DS_ACCELERATOR": "xpu"}, 2) == "xpu"


def test_gpus_that_torch_cannot_use_are_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "import sys; sys.exit('Traceback\\nRuntimeError: the driver is too old')"
    monkeypatch.setattr(environment, "has_gpus", lambda: True)
    monkeypatch.setattr(environment, "_QUESTION", said)
    environment.ask_torch.cache_clear()
    told: list[str] = []
    _warn_of_unusable_gpus({}, told.append)
    _warn_of_unusable_gpus({"CUDA_VISIBLE_DEVICES": ""}, told.append)
    environment.ask_torch.cache_clear()
    assert len(told) == 1
    assert told[0].endswith("so the CPU is: RuntimeError: the driver is too old")


def test_the_threads_of_each_process_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads({"OMP_NUM_THREADS": "3,2"}) == 3
    assert threads({}) is None
    monkeypatch.setattr(environment, "cores", lambda: 12)
    assert Placement(processes=4, environment={}).threads() == 3
    assert Placement(processes=4, environment={"OMP_NUM_THREADS": "7"}).threads() == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=2\n")
    assert Placement(hostfile=tmp_path / "hosts", environment={}).threads() is None


def test_workers_have_the_threads_that_the_command_line_spares(monkeypatch):
    monkeypatch.setattr(spared, "names", [])
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    spared.spare_threads()
    assert worker_environment(dict(os.environ), 2, 0, 2)["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    spared.spare_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    assert "OPENBLAS_NUM_THREADS" not in worker_environment(dict(os.environ), 2, 0, 2)
