"""Each launcher: what it is called with, and two ranks started by it."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LaunchError, RecipeError, ResourceError
from launcher import master
from launcher.chain import Request
from launcher.command import Launch, deepspeed_command
from launcher.conduct import Conductor
from launcher.environment import PROJECT
from launcher.hosts import Host
from launcher.launchers import LAUNCHERS
from launcher.launchers.slurm import allocation
from launcher.master import Wish
from launcher.placement import Placement
from launcher.run_folder import RunFolder
from tests.launcher.fakes import Fakes
from tests.launcher.toy import Toy

HOSTS = (Host("node-1", 2), Host("node-2", 2))


def launch(name: str, **changes: Any) -> Launch:
    facts: dict[str, Any] = {
        "recipe": Path("/runs/a/recipe.yaml"),
        "stages": ["base"],
        "port": 4000,
        "folder": Path("/runs/a/base/launch"),
        "hosts": HOSTS,
        "hostfile": Path("/runs/a/base/launch/hostfile"),
        "launcher": name,
        "address": "10.0.0.1",
        "working": Path("/home/me"),
    }
    return Launch(**(facts | changes))


def words(name: str, environment: dict[str, str] | None = None, **changes: Any) -> list[str]:
    return deepspeed_command(launch(name, **changes), ["deepspeed"], environment or {})


WORKER = [
    "/runs/a/recipe.yaml",
    "base",
    "--report_to=/runs/a/base/launch",
    "--grace=60",
    "--folder=/home/me",
]
COMMON = ["--no_ssh_check", "--master_addr=10.0.0.1", "--master_port=4000"]
START = ["deepspeed", "--hostfile=/runs/a/base/launch/hostfile"]


def test_pdsh() -> None:
    assert words("pdsh") == [
        *(*START, "--launcher=pdsh", "--force_multi", *COMMON),
        *("--module", "launcher.worker", *WORKER),
    ]
    chosen = (Host("node-1", 2, (1, 3)), Host("node-2", 1, (0,)))
    few = words("pdsh", hosts=chosen, launcher_args="-t 20")
    assert few[4:6] == ["--include=node-1:1,3@node-2:0", "--launcher_args=-t 20"]


def test_openmpi() -> None:
    assert words("openmpi", launcher_args="--mca btl_tcp_if_include ib0") == [
        *(*START, "--launcher=openmpi", "--force_multi"),
        "--launcher_args=--bind-to none --map-by slot --mca btl_tcp_if_include ib0",
        *(*COMMON, "--module", "launcher.worker", *WORKER),
    ]
    with pytest.raises(RecipeError, match=r"cannot choose 1, 3;.* or use --launcher pdsh"):
        LAUNCHERS["openmpi"].arranged([Host("node-1", 2, (1, 3))], {})


def test_mpirun_counts_from_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-2")
    assert [host.name for host in LAUNCHERS["openmpi"].arranged(HOSTS, {})] == ["node-2", "node-1"]


def test_slurm() -> None:
    assert words("slurm", {"SLURM_CPUS_PER_TASK": "6"}) == [
        *(*START, "--launcher=slurm", "--force_multi"),
        "--launcher_args=--nodes=2 --ntasks-per-node=2 --nodelist=node-1,node-2 "
        "--distribution=block --kill-on-bad-exit=1 --cpus-per-task=6",
        *(*COMMON, str(PROJECT / "launcher/worker.py"), *WORKER),
    ]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path)
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SLURM_JOB_NODELIST", "SLURM_JOB_ID", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_slurm_takes_its_allocations_order_and_nothing_else(fakes: Fakes) -> None:
    slurm = LAUNCHERS["slurm"]
    allocated = {"SLURM_JOB_NODELIST": "node-3,node-1,node-2", "PATH": f"{fakes.folder}:/bin"}
    swapped = [Host("node-2", 2), Host("node-3", 2)]
    assert [host.name for host in slurm.arranged(swapped, allocated)] == ["node-3", "node-2"]
    with pytest.raises(RecipeError, match=r"equally many slots .*: node-1 2, node-2 1"):
        slurm.arranged([Host("node-1", 2), Host("node-2", 1)], allocated)
    with pytest.raises(RecipeError, match=r"srun counts tasks and cannot choose the slots 1;"):
        slurm.arranged([Host("node-1", 1, (1,))], allocated)
    with pytest.raises(RecipeError, match=r"nod-1 is not in this allocation; did you"):
        slurm.arranged([Host("nod-1", 1)], allocated)
    assert allocation(allocated | {"SLURM_GPUS_ON_NODE": "4"}, None)[0] == Host("node-3", 4)
    per_node = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "4"}
    assert {host.slots for host in allocation(allocated | per_node, None)} == {2}
    assert {host.slots for host in allocation(allocated, 3)} == {3}
    with pytest.raises(RecipeError, match="give --processes"):
        allocation(allocated, None)


def test_what_is_missing_is_told_before_anything_starts(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"PATH": "/nowhere"}
    for name, needed in {
        "pdsh": "pdsh and ssh",
        "openmpi": "ompi_info and mpirun",
        "slurm": "sinfo and srun and scontrol",
    }.items():
        with pytest.raises(LaunchError, match=f"--launcher {name} needs {needed} on this machine"):
            LAUNCHERS[name].require(nothing)
    here = {"PATH": f"{fakes.folder}:/usr/bin"}
    with pytest.raises(LaunchError, match="onward launch-script"):
        LAUNCHERS["slurm"].require(here)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(LaunchError, match=r"refuses to run as root.*OMPI_ALLOW_RUN_AS_ROOT=1 and"):
        LAUNCHERS["openmpi"].require(here)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    LAUNCHERS["openmpi"].require(here)


def run_two_ranks(folder: Path, placement: Placement) -> None:
    toy = Toy(
        name="toy",
        output=folder / "a run; $HOME `x`",
        seed=1,
        stages={"crew": {"kind": "crew"}},  # type: ignore[dict-item]
    )
    Conductor(toy, Request(), placement, [].append, lambda names, world: None).run()
    status = RunFolder(toy.output).status("crew")
    assert status is not None
    assert status.state == "done"
    assert status.workers is not None
    assert status.workers.processes == 2


@pytest.fixture
def on_the_cpu(operators: dict[str, str], fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    for name, value in {**operators, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    return fakes


@pytest.mark.grid
@pytest.mark.processes
@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed")
def test_two_ranks_by_real_pdsh_over_a_stand_in_for_ssh(
    tmp_path: Path, on_the_cpu: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.master.addresses", lambda name: ["127.0.0.1"])
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0,eth1")
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node-1 slots=2\n")
    run_two_ranks(tmp_path, Placement(hostfile=hostfile, module="tests.launcher.toy"))
    (note,) = [
        note
        for note in on_the_cpu.notes("ssh")
        if "deepspeed.launcher.launch" in str(note["words"])
    ]
    assert "GLOO_SOCKET_IFNAME=lo" in " ".join(note["words"])
    assert "canary" not in on_the_cpu.all_notes()


@pytest.mark.processes
@pytest.mark.grid
def test_two_ranks_by_a_stand_in_for_srun_without_a_hostfile(
    tmp_path: Path, on_the_cpu: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node-7")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0,eth1")
    run_two_ranks(tmp_path, Placement(launcher="slurm", module="tests.launcher.toy"))
    asked, started = on_the_cpu.notes("srun")
    assert asked["words"][:3] == ["--nodes=1", "--ntasks=1", "--overlap"]
    (export,) = [word for word in started["words"] if word.startswith("--export=")]
    assert "NCCL_SOCKET_IFNAME=" not in export
    assert "ONWARD_PASSED=" in export
    assert not on_the_cpu.notes("ssh")


@pytest.mark.processes
@pytest.mark.grid
@pytest.mark.skipif(shutil.which("ompi_info") is None, reason="Open MPI is not installed")
def test_two_ranks_by_the_real_mpirun(
    tmp_path: Path, on_the_cpu: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mpirun", "ompi_info"):
        (on_the_cpu.folder / name).unlink()
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    placement = Placement(hostfile=hostfile, launcher="openmpi", module="tests.launcher.toy")
    run_two_ranks(tmp_path, placement)


def test_an_address_that_only_the_first_host_reaches_is_refused(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = (Host("node-1", 1), Host("node-2", 1))
    reach = LAUNCHERS["pdsh"].reach(hosts[0], {})
    monkeypatch.setattr("launcher.master.addresses", lambda name: ["127.0.1.1"])
    for wish in (Wish(), Wish("127.0.0.1")):
        with pytest.raises(
            LaunchError, match=r"127\.0\..*, which only node-1 itself can reach: does"
        ):
            master.find(hosts, wish, reach)
    with pytest.raises(LaunchError, match=r"--master-addr 192\.0\.2\.99: on node-1 .* not an addr"):
        master.find(hosts, Wish("192.0.2.99"), reach)
    assert len(fakes.notes("ssh")) == 3
    # Behind an address translation rank 0 listens at another one than the others call.
    found = master.find(hosts, Wish("192.0.2.99", listen="127.0.0.1"), reach)
    assert found.address == "192.0.2.99"
    with pytest.raises(LaunchError, match=r"ONWARD_LISTEN=192\.0\.2\.98 is not an address"):
        master.find(hosts, Wish("192.0.2.99", listen="192.0.2.98"), reach)
    with pytest.raises(RecipeError, match="ONWARD_LISTEN ; rm: expected"):
        master.find(hosts, Wish("192.0.2.99", listen="; rm"), reach)


def test_a_port_in_use_on_the_first_host_names_its_process(fakes: Fakes) -> None:
    hosts = (Host("node-1", 2),)
    reach = LAUNCHERS["pdsh"].reach(hosts[0], {})
    found = master.find(hosts, Wish(), reach)
    assert found.address == "127.0.0.1"
    with socket.socket() as server:
        server.bind(("", found.port))
        server.listen()
        with pytest.raises(ResourceError, match=f"port {found.port} on node-1: in use by process"):
            master.find(hosts, Wish(port=found.port), reach)


def test_a_first_host_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    silent = tmp_path / "reach"
    silent.write_text("#!/bin/sh\necho no route to host >&2\nexit 255\n")
    silent.chmod(0o755)
    with pytest.raises(LaunchError, match=r"node-1 could not be asked for .*: no route to host;"):
        master.find((Host("node-1", 2),), Wish(), [str(silent)])
