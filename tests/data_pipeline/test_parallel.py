"""Work shared by processes, and how it is shown."""

import os
import time

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


def test_one_process_is_this_one():
    with Workers(1) as workers:
        assert list(workers.map(process, [1, 2])) == [os.getpid()] * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_goes_to_stderr(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    total = []
    items = metered(iter("abc"), 3, "reading", lambda: f"{len(total)} done")
    total.extend(items)
    assert "".join(total) == "abc"
    said = capsys.readouterr()
    assert said.out == ""
    assert "reading: 3 done" in said.err
    assert ("3/3" in said.err) == terminal
