"""What a rank of a group does in a test: trains in place while its checkpoints are written."""

import sys
from pathlib import Path
from typing import Any

import torch

from configs.errors import OnwardError
from engine import distributed, faults
from engine.checkpoint_policy import CheckpointConfig
from engine.hooks import CheckpointHook
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import LiveBackend


def save_behind(root: str, fault: str = "", on_disk_error: Any = "stop") -> None:
    """Steps 1 to 12 with a checkpoint every 4; the reduction of each step is the training's own."""
    with distributed.joined("gloo"):
        backend: Any = LiveBackend(0, distributed.rank(), distributed.world())
        policy = CheckpointConfig(every=4, keep=9, mode="async", on_disk_error=on_disk_error)
        hook = CheckpointHook(Path(root), "recipe", lambda p: {"cursor": p.step * 8}, policy, 12)
        faults.load(fault)
        hook.on_start(backend, Progress(0))
        try:
            for step in range(1, 13):
                backend.train(step)
                distributed.all_reduce(torch.ones(1000))
                hook.after_step(backend, Progress(step), None)  # type: ignore[arg-type]  # unread
        except OnwardError as error:
            sys.stdout.write(f"step {step}: {error}\n")
            raise
        finally:
            hook.on_end(backend, Progress(step))
