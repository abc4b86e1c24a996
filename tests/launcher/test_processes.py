"""A process group of our own is ended whole, whatever comes in between."""

import os
import signal
import threading
from pathlib import Path

import pytest

from launcher.interruption import Interrupted, signals_interrupt
from launcher.processes import close_pipes, end_group, end_leader, group_members, start_group


def test_a_signal_while_a_group_ends_leaves_nobody_behind() -> None:
    deaf = "trap '' TERM; echo ready; while :; do sleep 60; done"
    process = start_group(["sh", "-c", deaf], {"PATH": os.environ["PATH"]})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # It comes while the group has its time to end.
    impatience = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with signals_interrupt():
        impatience.start()
        with pytest.raises(Interrupted):
            end_group(process, grace=30.0)
    impatience.join()
    try:
        assert process.wait(timeout=10) == -signal.SIGKILL
    finally:
        end_group(process, grace=0.0)
        close_pipes(process)


def test_a_leader_that_would_do_more_at_a_signal_gets_no_chance(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"trap 'touch {mark}; exit' TERM; sleep 60 & echo ready; wait"
    process = start_group(["sh", "-c", script], {"PATH": os.environ["PATH"]})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    end_leader(process)
    assert group_members(process.pid)
    end_group(process, grace=5.0)
    close_pipes(process)
    assert not group_members(process.pid)
    assert not mark.exists()
