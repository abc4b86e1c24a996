"""What an ended launch has left on other hosts is ended by id, and nothing else is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.hosts import SSH, Host
from launcher.outcome import Outcome
from launcher.remains import end_remains
from launcher.spelling import spell

HOSTS = (Host("localhost", 1), Host("node-2", 2))


def by_ssh(host: Host) -> list[str]:
    return [*SSH, host.name]


WAIT = "import time; time.sleep(60)"


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A launch folder; ssh enters this machine, whatever the name."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != node-2 ]; do shift; done\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    folder = tmp_path / "it's a launch"
    folder.mkdir()
    return folder


@pytest.fixture
def left(launch: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A rank here, one there, and there somebody else who has a rank's number by now."""
    mark = f"--report_to={spell(str(launch))}"
    marks = [mark, mark, f"{mark}-2"]
    started = [subprocess.Popen([sys.executable, "-c", WAIT, mark]) for mark in marks]
    for rank, process in enumerate(started):
        outcome = Outcome(rank=rank, host=HOSTS[min(rank, 1)].name, pid=process.pid)
        (launch / f"rank-{rank}.json").write_text(outcome.model_dump_json())
    yield started
    for process in started:
        process.kill()
        process.wait(timeout=10)


def test_only_ranks_of_that_launch_on_other_hosts_are_ended(
    launch: Path, left: list[subprocess.Popen[bytes]]
) -> None:
    here, there, stranger = left
    assert end_remains(launch, HOSTS, by_ssh) == {"node-2": [there.pid]}
    assert there.wait(timeout=10) == -9
    assert (here.poll(), stranger.poll()) == (None, None)


def test_srun_hands_the_words_on_as_they_are(
    launch: Path, left: list[subprocess.Popen[bytes]]
) -> None:
    found = end_remains(launch, HOSTS, lambda host: ["env", f"ON={host.name}"])
    assert found == {"node-2": [left[1].pid]}


def test_nothing_is_asked_where_no_rank_came_up(launch: Path) -> None:
    assert end_remains(launch, HOSTS, by_ssh) == {}


def test_a_host_that_does_not_answer_is_left_alone(
    launch: Path, left: list[subprocess.Popen[bytes]]
) -> None:
    (launch.parent / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    assert end_remains(launch, HOSTS, by_ssh) == {}
    assert all(process.poll() is None for process in left)
