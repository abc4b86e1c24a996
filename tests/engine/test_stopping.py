"""Votes on stopping: one rank's word is everybody's, it stays, and a lost rank is noticed."""

import os
import signal
import sys
import time

import pytest

from configs.stop import StopRequest
from engine.stopping import Stopping
from tests.warm import WarmWorkers

HERE = "tests.engine.test_stopping"


def test_alone_the_own_word_counts_and_stays() -> None:
    request = StopRequest()
    stop = Stopping(request)
    stop.begin()
    assert (stop.agreed(), stop.is_agreed, stop.has_lost_a_rank) == (False, False, False)
    stop.begin()
    request.ask("SIGTERM")
    # It was begun before; the next one counts.
    assert not stop.agreed()
    assert stop.agreed()
    stop.begin()
    assert (stop.agreed(), stop.is_agreed) == (True, True)


def vote() -> None:
    from engine import distributed

    request = StopRequest()
    with distributed.joined():
        stop = Stopping(request)
        answers = []
        for turn in range(4):
            if (turn, distributed.rank()) == (2, 1):
                request.ask("SIGTERM")
            stop.begin()
            answers.append(stop.agreed())
        assert answers == [False, False, True, True]
        other = Stopping(StopRequest())
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        other.begin()
        end = time.monotonic() + 60
        while not other.has_lost_a_rank and time.monotonic() < end:
            time.sleep(0.01)
        sys.stdout.write(f"lost: {other.has_lost_a_rank}\n")


@pytest.mark.processes
def test_ranks_agree_and_notice_a_loss(warm: WarmWorkers) -> None:
    first, second = warm.start(f"{HERE}:vote", grace=60).wait(100)
    assert second.signal == signal.SIGKILL
    assert first.code == 0, first.text
    assert "lost: True" in first.text
