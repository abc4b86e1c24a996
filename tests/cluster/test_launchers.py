"""The other launchers on several hosts: real mpirun, and real Slurm with jobs that are requeued."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ResourceError
from tests.cluster.hosts import Cluster, cluster
from tests.cluster.jobs import LONGEST, Job
from tests.cluster.requeueing import lost_and_requeued, requeued
from tests.cluster.slurm import ENDED, Slurm, slurm
from tests.cluster.switch import SYSTEM_PATH
from tests.launcher.pretraining import make_data

pytestmark = pytest.mark.cluster
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module")
def two(operators: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(2, tmp_path_factory.mktemp("launchers")) as made:
        yield made


@pytest.fixture(scope="module")
def data(two: Cluster) -> Path:
    return make_data(two.folder / "data")


@pytest.fixture(scope="module")
def whole(two: Cluster, data: Path) -> Any:
    """What two processes of one host come to."""
    job = Job(two, data, "whole")
    done = job.alone(two.hosts[0], 2)
    assert done.returncode == 0, done.stderr
    return job.numbers()


@pytest.fixture(scope="module")
def queue(two: Cluster) -> Iterator[Slurm]:
    try:
        with slurm(two) as made:
            yield made
    except ResourceError as error:
        pytest.skip(str(error))


def test_mpirun_starts_ranks_that_come_to_the_same(two: Cluster, data: Path, whole: Any) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun here (Debian: openmpi-bin)")
    job = Job(two, data, "mpi")
    done = job.run(two.hosts, "--launcher", "openmpi", **AS_ROOT)
    assert done.returncode == 0, done.stderr
    assert job.numbers() == whole


def test_srun_starts_ranks_in_an_allocation(queue: Slurm, data: Path, whole: Any) -> None:
    job = Job(queue.cluster, data, "srun")
    job.place.mkdir(exist_ok=True)
    words = ["run", str(job.recipe), "--launcher", "slurm"]
    script = job.place / "job.sh"
    line = " ".join([sys.executable, "-m", "launcher", *words])
    script.write_text(f"#!/bin/bash\nexec {line}\n")
    number = queue.submit(script, "--nodes=2", "--ntasks-per-node=1", f"--output={job.log}")
    state = queue.wait(number, ENDED, LONGEST)
    assert state == "COMPLETED", job.log.read_text()
    assert job.numbers() == whole


def test_doctor_asks_the_nodes_of_an_allocation_by_srun(queue: Slurm, data: Path) -> None:
    place = queue.cluster.folder / "asked"
    place.mkdir()
    words = ["doctor", "--launcher", "slurm", "--run", str(place), "--json"]
    own = ["salloc", "--nodes=2", "--ntasks-per-node=1", "--quiet"]
    first = queue.cluster.hosts[0]
    # Nobody is entered by ssh.
    away = {"PATH": f"{_without_ssh(place)}:{SYSTEM_PATH}"}
    done = first.run([*own, sys.executable, "-m", "launcher", *words], LONGEST, **away)
    told = json.loads(done.stdout)
    assert told["ok"], done.stdout
    assert [*told["hosts"]] == [host.name for host in queue.cluster.hosts]
    assert [*told["collectives"]["came"].values()] == ["measured"] * 2


def _without_ssh(place: Path) -> Path:
    """For the front of PATH: an ssh that lets nobody in."""
    ssh = place / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho no ssh here >&2\nexit 255\n")
    ssh.chmod(0o755)
    return ssh.parent


def test_a_job_saves_before_its_end_and_goes_on_when_it_is_requeued(
    queue: Slurm, data: Path, whole: Any
) -> None:
    told = requeued(queue, data, "requeued")
    assert told.state == "COMPLETED", told.said
    assert told.restarts == 1
    assert "its state saved" in told.said
    assert told.job.numbers() == whole


def test_a_job_that_loses_a_host_goes_on_when_it_is_requeued(
    queue: Slurm, data: Path, whole: Any
) -> None:
    told = lost_and_requeued(queue, data, "lost")
    assert told.state == "COMPLETED", told.said
    assert told.restarts == 1
    assert told.job.numbers() == whole


def test_without_a_host_that_died_the_rest_goes_on(two: Cluster, data: Path) -> None:
    job = Job(two, data, "supervised", hang_after=6)
    kept = ["--supervise", "--min-hosts", "1"]
    started = job.start(two.hosts, *kept, fault="sleep@forward:rank=1,step=6,seconds=600")
    job.wait_for_strike(started)
    two.hosts[1].power_off()
    assert started.wait(2 * LONGEST) == 0, job.log.read_text()
    said = job.log.read_text()
    assert "node-2: left out: " in said
    assert "from step 4, on node-1" in said
    assert len(job.losses()) == 12
    two.hosts[1].boot()
