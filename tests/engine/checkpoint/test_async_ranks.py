"""Two processes save behind their training, over a group that the training does not use."""

from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import newest
from tests.engine.checkpoint.test_behind import holds, steps_in
from tests.warm import Ended, WarmWorkers

pytestmark = pytest.mark.processes
WORKER = "tests.engine.checkpoint.async_worker:save_behind"


def launch(warm: WarmWorkers, root: Path, **arguments: Any) -> list[Ended]:
    return warm.run(WORKER, {"root": str(root), **arguments}, world=2)


def test_two_processes_save_while_they_train(warm: WarmWorkers, tmp_path: Path) -> None:
    root = tmp_path / "stage" / "checkpoints"
    ended = launch(warm, root, fault="sleep@checkpoint.gather:rank=1,seconds=0.3")
    assert [each.code for each in ended] == [0, 0], ended[0].text + ended[1].text
    assert steps_in(root) == [4, 8, 12]
    for step in (4, 8, 12):
        holds(root, step)


def test_a_full_disk_on_one_rank_ends_both_at_one_step(warm: WarmWorkers, tmp_path: Path) -> None:
    root = tmp_path / "stage" / "checkpoints"
    ended = launch(warm, root, fault="full@checkpoint.half:rank=1,step=4")
    assert [each.code for each in ended] == [7, 7], ended[0].text + ended[1].text
    told = [next(line for line in each.text.splitlines() if "step 8: " in line) for each in ended]
    assert told[0] == told[1]
    assert "rank-00001-of-00002" in told[0]
    assert "no space" in told[0]
    assert steps_in(root) == []


def test_a_killed_rank_leaves_the_checkpoint_before(warm: WarmWorkers, tmp_path: Path) -> None:
    root = tmp_path / "stage" / "checkpoints"
    ended = launch(warm, root, fault="kill@checkpoint.half:rank=1,step=8")
    assert ended[1].signal == 9
    found = newest(root, "recipe")
    assert found is not None
    assert found.step == 4
    holds(root, 4)
