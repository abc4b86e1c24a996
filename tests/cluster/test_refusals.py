"""What is wrong with the hosts is told by name and soon, before a step is taken."""

import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, cluster
from tests.cluster.jobs import Job
from tests.launcher.pretraining import make_data

pytestmark = pytest.mark.cluster
SOON = 60.0
"""Seconds, on a machine with much else to do; starting the ranks alone takes about ten."""


@pytest.fixture(scope="module")
def two(operators: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(2, tmp_path_factory.mktemp("refusals")) as made:
        yield made


@pytest.fixture(scope="module")
def data(two: Cluster) -> Path:
    return make_data(two.folder / "data")


@pytest.fixture
def job(two: Cluster, data: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    yield Job(two, data, request.node.originalname)
    second = two.hosts[1]
    second.power_off()
    second.boot()


def refused(job: Job, *more: str, **environment: str) -> str:
    """What the user is told, who has asked for both hosts."""
    began = time.monotonic()
    done = job.run(job.cluster.hosts, *more, **environment)
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - began < 2 * SOON
    assert not (job.stage / "metrics.jsonl").exists()
    return done.stderr.partition("error:")[2]


def test_entries_of_hosts_that_are_not_there(two, job):
    off = two.hosts[1]
    off.power_off()
    file = two.folder / "stale"
    file.write_text("node-1 slots=1\nnode-2 slots=1\nnode-9 slots=1\n")
    command = job.command(two.hosts)
    command[command.index("--hostfile") + 1] = str(file)
    began = time.monotonic()
    done = two.hosts[0].run(command, SOON, cwd=job.place)
    assert time.monotonic() - began < SOON
    assert done.returncode == 5, done.stderr
    assert "node-2: ssh: connect to host node-2 port 22" in done.stderr
    assert "node-9: ssh: Could not resolve hostname node-9" in done.stderr
    assert "node-1:" not in done.stderr


def test_a_run_folder_that_is_not_shared(two, job):
    two.hosts[1].hide(job.output)
    said = refused(job)
    assert f"node-2: what was written into {job.output} is not there" in said
    assert list(job.output.glob(".shared-*")) == []
    # By another launcher a rank finds out itself.
    worker = ["-m", "launcher.worker", str(job.recipe), "dapt", "--launch_id=1"]
    python = job.command(two.hosts)[0]
    folder = job.stage / "launch"
    done = two.hosts[1].run([python, *worker, f"--report_to={folder}"], SOON)
    assert done.returncode == 5
    assert "error: node-2: there is no" in done.stderr
    assert "must be on a file system that all hosts share" in done.stderr


def test_data_that_one_host_does_not_have(two, data, job):
    two.hosts[1].hide(data / "shards")
    two.hosts[1].hide(data)
    assert f"node-2: there is no {data / 'shards'}" in refused(job)


def test_a_host_with_other_versions(two, job, tmp_path):
    found = importlib.metadata.distribution("transformers")
    metadata = next(f for f in found.files or [] if f.name == "METADATA")
    place = Path(str(found.locate_file(metadata)))
    other = two.folder / "METADATA"
    other.write_text(place.read_text().replace(f"Version: {found.version}", "Version: 4.0.0"))
    two.hosts[1].overlay(place, other)
    said = refused(job)
    assert f"transformers: {found.version} on node-1; 4.0.0 on node-2" in said


def test_ports_that_a_firewall_blocks(two, job):
    # Rank 0 waits at this one, and the other cannot come.
    two.hosts[0].block(29517)
    said = refused(job, "--master-port", "29517", ONWARD_JOIN_SECONDS="6")
    two.hosts[0].unblock(29517)
    assert "rank 1 on node-2 (it began there)" in said or "rank 1 on node-2 could not" in said
    # They meet, and then cannot talk: gloo takes any port.
    two.hosts[1].block("10000-65535")
    said = refused(job, ONWARD_JOIN_SECONDS="6")
    two.hosts[1].unblock("10000-65535")
    assert "met the others, but cannot talk to all of them" in said
    assert "node-2 (eth0 10.77.0.2)" in said


def test_an_interface_that_leads_nowhere(job):
    said = refused(job, GLOO_SOCKET_IFNAME="lo")
    assert "node-2 over lo (127.0.0.1)" in said
