"""Ranks of several hosts whose launcher is stopped or killed save, and nobody is left."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Cluster, cluster, wait_until
from tests.cluster.jobs import LONGEST, Job
from tests.launcher.pretraining import make_data

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def two(operators: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(2, tmp_path_factory.mktemp("gone")) as made:
        yield made


@pytest.fixture(scope="module")
def job(two: Cluster) -> Job:
    data = make_data(two.folder / "data")
    return Job(two, data, "long", steps=5000, checkpoint={"every": 4000}, hang_after=60)


def begin(job: Job, before: int, **environment: str) -> Any:
    started = job.start(job.cluster.hosts, **environment)
    metrics = job.stage / "metrics.jsonl"

    def goes_on() -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") > before + 3

    wait_until(lambda: goes_on() or started.poll() is not None, LONGEST, "steps")
    assert started.poll() is None, job.log.read_text()
    return started


def nobody_left(job: Job) -> bool:
    """No host has a process of the run."""
    asked = ["pgrep", "-f", str(job.output)]
    return all(host.run(asked).returncode == 1 for host in job.cluster.hosts)


def test_a_closed_terminal_saves_on_every_host_and_each_rank_has_its_log(job: Job) -> None:
    started = begin(job, 0)
    started.send_signal(signal.SIGHUP)
    assert started.wait(LONGEST) == 75, job.log.read_text()
    wait_until(lambda: nobody_left(job), 5, "the end of every process")
    (step,) = job.saved()
    said = job.log.read_text()
    assert f"stopped after step {step} of 5000, its state saved" in said
    assert "(2 hosts, 2 ranks)" in said
    for rank in range(2):
        log = (job.stage / f"logs/rank-{rank}.log").read_text()
        assert f"rank {rank} of 2 on node-{rank + 1}, process " in log
    assert "spawned with command" in (job.stage / "launcher.log").read_text()


def test_a_launcher_that_was_killed_is_missed_and_the_state_saved(job: Job) -> None:
    before = max(job.saved())
    started = begin(job, before, ONWARD_LAUNCHER_SILENCE="6")
    started.kill()
    started.wait(LONGEST)
    wait_until(lambda: nobody_left(job), LONGEST, "the end of every process")
    assert max(job.saved()) > before + 3
    words = [path.read_text() for path in Path(job.stage / "launch").glob("rank-*.json")]
    assert len(words) == 2
    assert all("its state saved" in word for word in words), words
