"""A process group of our own is ended whole, whatever comes in between."""

import os
import signal
import threading

import pytest

from launcher.interruption import Interrupted, signals_interrupt
from launcher.processes import close_pipes, end_group, start_group


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
