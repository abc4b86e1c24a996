"""Ranks on one host leave nothing of DeepSpeed's in the memory that outlives them."""

import os
import sys
from pathlib import Path

import pytest

from tests.warm import WarmWorkers

pytestmark = pytest.mark.processes
LEFT = "deepspeed_allreduce_buffer_*_{port}_*"


def start_engine(folder: str) -> None:
    from engine import distributed
    from engine.backends.deepspeed_zero import DeepSpeedZero
    from engine.optimization import AdamW
    from tests.engine import tiny

    config = {
        "train_batch_size": 2,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    learner = tiny.learner(Path(folder) / os.environ["RANK"])
    DeepSpeedZero(config=config).build(learner, AdamW(lr=1e-3))
    distributed.barrier()
    left = list(Path("/dev/shm").glob(LEFT.format(port=os.environ["MASTER_PORT"])))
    sys.stdout.write(f"left {len(left)}, told of {os.environ['LOCAL_SIZE']}\n")
    distributed.stop()


def test_no_shared_memory_is_left(warm: WarmWorkers, tmp_path: Path) -> None:
    # So deepspeed's launcher tells ranks that they are all on one host.
    function = "tests.engine.backends.test_shared_memory:start_engine"
    ended = warm.run(function, {"folder": str(tmp_path)}, env={"LOCAL_SIZE": "2"})
    assert [each.code for each in ended] == [0, 0], ended[0].text + ended[1].text
    assert all("left 0, told of 2" in each.text for each in ended)
