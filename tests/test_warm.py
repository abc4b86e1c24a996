"""Warm workers: ranks that meet, that fail, that hang, and none that outlives the test."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import ROOT, WarmWorkers

pytestmark = pytest.mark.processes
HERE = "tests.test_warm"


def add_up(value: int) -> None:
    import torch

    from engine import distributed

    with distributed.joined():
        total = distributed.all_reduce(torch.tensor([value + distributed.rank()]))
        sys.stdout.write(f"sum {int(total)}, {os.environ['GIVEN']}\n")


def one_fails() -> None:
    from configs.errors import NumericalError

    if os.environ["RANK"] == "1":
        msg = "on purpose"
        raise NumericalError(msg)
    time.sleep(600)


def sleep() -> None:
    time.sleep(600)


def test_ranks_meet_and_are_given_what_was_asked(warm: WarmWorkers) -> None:
    ended = warm.run(f"{HERE}:add_up", {"value": 5}, world=3, env={"GIVEN": "yes"})
    assert [(each.rank, each.code, each.signal) for each in ended] == [
        (rank, 0, None) for rank in range(3)
    ]
    assert all("sum 18, yes" in each.text for each in ended)


def test_when_a_rank_fails_the_others_are_killed_after_a_while(warm: WarmWorkers) -> None:
    first, second = warm.start(f"{HERE}:one_fails", grace=0.2).wait(60)
    assert (first.code, first.signal) == (None, signal.SIGKILL)
    assert second.code == 6
    assert "on purpose" in second.text


def test_a_group_that_hangs_is_killed_and_its_ranks_can_be_hit_alone(warm: WarmWorkers) -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] did not end"):
        warm.run(f"{HERE}:sleep", timeout=0.3)
    handle = warm.start(f"{HERE}:sleep", world=1)
    handle.kill(signal.SIGTERM, rank=0)
    assert handle.wait(60)[0].signal == signal.SIGTERM


def test_ranks_die_with_the_process_that_asked_for_them(
    tmp_path: Path, operators: dict[str, str]
) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.warm import WarmWorkers\n"
        "with WarmWorkers({}, Path(sys.argv[1])) as workers:\n"
        f"    print(*workers.start('{HERE}:sleep').pids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **operators, "PYTHONPATH": str(ROOT)},
    )
    with asking:
        assert asking.stdout
        ranks = [int(pid) for pid in asking.stdout.readline().split()]
        asking.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end and any(map(_lives, ranks)):
        time.sleep(0.05)
    assert len(ranks) == 2
    assert not any(map(_lives, ranks))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
