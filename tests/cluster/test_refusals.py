"""What is wrong with the hosts is told by name and soon, before a step is taken."""

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, ClusterHost, cluster
from tests.cluster.jobs import Job
from tests.launcher.pretraining import make_data

pytestmark = pytest.mark.cluster
SOON = 60.0
"""Seconds, on a machine with much else to do; starting the ranks alone takes about ten."""


@pytest.fixture(scope="module")
def three(operators: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(3, tmp_path_factory.mktemp("refusals")) as made:
        yield made


@pytest.fixture(scope="module")
def two(three: Cluster) -> Sequence[ClusterHost]:
    return three.hosts[:2]


@pytest.fixture(scope="module")
def data(three: Cluster) -> Path:
    return make_data(three.folder / "data")


@pytest.fixture
def job(three: Cluster, data: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    yield Job(three, data, request.node.originalname)
    second = three.hosts[1]
    second.power_off()
    second.boot()


def refused(job: Job, *more: str, hosts: Sequence[ClusterHost] = (), **environment: str) -> str:
    """What the user is told, who has asked for these hosts, or for two."""
    began = time.monotonic()
    done = job.run(hosts or job.cluster.hosts[:2], *more, **environment)
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - began < 2 * SOON
    assert not (job.stage / "metrics.jsonl").exists()
    return done.stderr.partition("error:")[2]


def test_entries_of_hosts_that_are_not_there(two, job):
    off = two[1]
    off.power_off()
    file = job.cluster.folder / "stale"
    file.write_text("node-1 slots=1\nnode-2 slots=1\nnode-9 slots=1\n")
    command = job.command(two)
    command[command.index("--hostfile") + 1] = str(file)
    began = time.monotonic()
    done = two[0].run(command, SOON, cwd=job.place)
    assert time.monotonic() - began < SOON
    assert done.returncode == 5, done.stderr
    assert "node-2: ssh: connect to host node-2 port 22" in done.stderr
    assert "node-9: ssh: Could not resolve hostname node-9" in done.stderr
    assert "node-1:" not in done.stderr


def test_a_run_folder_that_is_not_shared(two, job):
    two[1].hide(job.output)
    said = refused(job)
    assert f"node-2: what was written into {job.output} is not there" in said
    assert list(job.output.glob(".shared-*")) == []
    # By another launcher a rank finds out itself.
    worker = ["-m", "launcher.worker", str(job.recipe), "dapt", "--launch_id=1"]
    python = job.command(two)[0]
    folder = job.stage / "launch"
    done = two[1].run([python, *worker, f"--report_to={folder}"], SOON)
    assert done.returncode == 5
    assert "error: node-2: there is no" in done.stderr
    assert "must be on a file system that all hosts share" in done.stderr


def test_data_that_one_host_does_not_have(two, data, job):
    two[1].hide(data / "shards")
    two[1].hide(data)
    assert f"node-2: there is no {data / 'shards'}" in refused(job)


def test_a_host_with_other_versions(two, job):
    found = importlib.metadata.distribution("transformers")
    metadata = next(f for f in found.files or [] if f.name == "METADATA")
    place = Path(str(found.locate_file(metadata)))
    other = job.cluster.folder / "METADATA"
    other.write_text(place.read_text().replace(f"Version: {found.version}", "Version: 4.0.0"))
    two[1].overlay(place, other)
    said = refused(job)
    assert f"transformers: {found.version} on node-1; 4.0.0 on node-2" in said


def test_ports_that_a_firewall_blocks(two, job):
    # Rank 0 waits at this one, and the other cannot come.
    two[0].block(29517)
    said = refused(job, "--master-port", "29517", ONWARD_JOIN_SECONDS="6")
    two[0].unblock(29517)
    assert "rank 1 on node-2 (it began there)" in said or "rank 1 on node-2 could not" in said


def test_hosts_that_reach_rank_0_and_not_each_other(three, job):
    three.hosts[2].ignore(three.hosts[1])
    said = refused(job, hosts=three.hosts, ONWARD_JOIN_SECONDS="6")
    three.hosts[2].heed(three.hosts[1])
    assert "met the others, but cannot talk to all of them" in said
    assert "node-3 (eth0 10.77.0.3)" in said


def test_an_interface_that_leads_nowhere(job):
    said = refused(job, GLOO_SOCKET_IFNAME="lo")
    assert "node-2 over lo (127.0.0.1)" in said
