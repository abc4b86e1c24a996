"""Work shared by processes, and how it is shown."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import DataError, ResourceError
from data_pipeline.meter import metered
from data_pipeline.parallel import AHEAD, Workers


def slow_first(item):
    time.sleep(0.05 if item == 0 else 0)
    return item * 2


def process(item):
    if item == "refuse":
        msg = "file:3: bad"
        raise DataError(msg)
    if item == "die":
        os._exit(9)
    return os.getpid()


def counted(seen, count):
    for i in range(count):
        seen.append(i)
        yield i


@pytest.mark.processes
def test_results_keep_the_order_and_work_is_not_taken_far_ahead():
    seen = []
    with Workers(2) as workers:
        results = workers.map(slow_first, counted(seen, 40))
        assert next(results) == 0
        assert len(seen) <= 2 * AHEAD
        assert list(results) == [2 * i for i in range(1, 40)]
        assert os.getpid() not in set(workers.map(process, range(4)))
        with pytest.raises(DataError, match="file:3: bad"):
            list(workers.map(process, ["go", "refuse"]))
        with pytest.raises(ResourceError, match="one of 2 processes was lost"):
            list(workers.map(process, ["go", "die", "go"]))


SLEEPERS = """
import sys
from data_pipeline.parallel import Workers
from tests.data_pipeline.test_parallel import asleep
with Workers(2) as workers:
    list(workers.map(asleep, range(2)))
"""


def asleep(item):
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece, whoever else writes
    time.sleep(100)


@pytest.mark.processes
def test_processes_end_with_the_one_that_started_them():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SLEEPERS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as main:
        try:
            workers = [int(main.stdout.readline()) for _ in range(2)]
        finally:
            main.kill()
        try:
            # The pipe ends when the last process that holds it has ended.
            assert main.communicate(timeout=60) == (b"", None)
        except subprocess.TimeoutExpired:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            raise


def test_one_process_is_this_one():
    with Workers(1) as workers:
        assert list(workers.map(process, [1, 2])) == [os.getpid()] * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_goes_to_stderr(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    total = []
    items = metered(iter("abc"), [1, 1, 1], "reading", "", lambda: f"{len(total)} done")
    total.extend(items)
    assert "".join(total) == "abc"
    said = capsys.readouterr()
    assert said.out == ""
    assert "reading: 3 done" in said.err
    assert ("100%" in said.err) == terminal
