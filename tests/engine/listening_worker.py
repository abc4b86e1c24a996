"""One rank of the test of listening sockets: everything that makes a group, and what listens."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.sockets import listeners
from engine import distributed
from engine.backends import DeepSpeedZero
from engine.optimization import AdamW
from tests.engine import tiny


def listen(answer: str) -> None:
    """``answer``: a file; ``.RANK`` is put behind its name."""
    distributed.start()
    group = distributed.Group()
    settings: dict[str, Any] = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    learner = tiny.learner(Path(tempfile.mkdtemp()))
    backend = DeepSpeedZero(config=settings).build(learner, AdamW(lr=1e-3))
    distributed.all_reduce(torch.ones(1))
    group.all_gather_object(1)
    number = distributed.Sum(1.0)
    assert number.result() == distributed.world()
    found = [[str(each.address), each.is_loopback, each.port] for each in listeners({os.getpid()})]
    Path(f"{answer}.{distributed.rank()}").write_text(json.dumps(found))
    distributed.barrier()
    backend.close()
    distributed.stop()
