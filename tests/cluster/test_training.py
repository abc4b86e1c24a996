"""Runs on several hosts, through real pdsh and ssh: trained, broken off, gone on with, the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Cluster, ClusterHost, cluster
from tests.cluster.jobs import LONGEST, STEPS, Job
from tests.launcher.pretraining import make_data

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def three(operators: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(3, tmp_path_factory.mktemp("training")) as made:
        yield made


@pytest.fixture(scope="module")
def data(three: Cluster) -> Path:
    return make_data(three.folder / "data")


@pytest.fixture(autouse=True)
def all_on(three: Cluster) -> Iterator[None]:
    yield
    for host in three.hosts:
        host.boot()
        host.mend()


@pytest.fixture(scope="module")
def whole(three: Cluster, data: Path) -> Any:
    """What two processes of one host come to, never broken off."""
    job = Job(three, data, "whole")
    done = job.alone(three.hosts[0], 2)
    assert done.returncode == 0, done.stderr
    return job.numbers()


def on(three: Cluster, *numbers: int) -> list[ClusterHost]:
    return [three.hosts[number - 1] for number in numbers]


def finish(job: Job, hosts: list[ClusterHost], **how: Any) -> str:
    done = job.run(hosts, **how)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_lost_rank_is_named_and_another_machine_may_start_the_rest(three, data, whole):
    job = Job(three, data, "lost")
    pair = on(three, 1, 2)
    done = job.run(pair, fault="kill@forward:rank=1,step=6")
    assert done.returncode == 5, done.stderr
    assert "rank 1 (process" in done.stderr
    assert "on node-2): killed" in done.stderr
    assert job.saved() == [4]
    # node-3 is a login node: it runs no rank.
    finish(job, pair, start_on=three.hosts[2])
    assert job.numbers() == whole


def test_it_goes_on_on_one_host_and_on_three(three, data, whole):
    job = Job(three, data, "elastic")
    done = job.run(on(three, 1, 2), fault="term@forward:rank=1,step=3")
    assert done.returncode == 75, done.stderr
    assert "its state saved" in done.stderr
    done = job.run(on(three, 2), fault="usr1@forward:step=7")
    assert done.returncode == 75, done.stderr
    finish(job, on(three, 3, 1, 2))
    control = {line["step"]: line["loss"] for line in whole["metrics"]}
    assert job.losses().keys() == control.keys() == set(range(1, STEPS + 1))
    assert job.losses() == pytest.approx(control, rel=1e-5)


def broken_off(job: Job, pair: list[ClusterHost], fault: str, strike: str) -> str:
    """Something happens to the second host while a rank holds still; what the user is told."""
    started = job.start(pair, fault=fault)
    job.wait_for_strike(started)
    getattr(pair[1], strike)()
    assert started.wait(LONGEST) == 5, job.log.read_text()
    said = job.log.read_text()
    assert "node-2" in said.partition("error:")[2], said
    return said


def test_a_host_that_is_cut_off_in_mid_step(three, data, whole):
    job, pair = Job(three, data, "cut"), on(three, 1, 2)
    broken_off(job, pair, "sleep@backward:rank=0,step=6,seconds=2", "cut")
    pair[1].mend()
    finish(job, pair)
    assert job.numbers() == whole


def test_a_host_that_loses_its_power_in_mid_step(three, data, whole):
    job, pair = Job(three, data, "off"), on(three, 1, 2)
    broken_off(job, pair, "sleep@backward:rank=1,step=6,seconds=600", "power_off")
    pair[1].boot()
    finish(job, pair)
    assert job.numbers() == whole


def test_a_host_that_loses_its_power_in_mid_checkpoint(three, data, whole):
    job, pair = Job(three, data, "half"), on(three, 1, 2)
    broken_off(job, pair, "sleep@checkpoint.half:rank=1,step=8,seconds=600", "power_off")
    assert job.saved() == [4]
    pair[1].boot()
    finish(job, pair)
    assert job.numbers() == whole
