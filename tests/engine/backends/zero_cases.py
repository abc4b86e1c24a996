"""What the ZeRO tests share: backends, curves, and checkpoints in memory."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import distributed
from engine.backends import DeepSpeedZero, Plain
from engine.loop import train_step
from engine.optimization import AdamW, Linear
from engine.penalties import StartingPoint
from engine.protocols import Adaptation, Backend, Run
from tests.engine import tiny

STEPS = 5
SAVED_AT = 3
PEAK = 1e-2
CPU = {"device": "cpu"}
STATES = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


@dataclass
class Saved:
    """A checkpoint in memory: whole arrays by (parameter, key)."""

    values: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    overlaps: int = 0
    holes: int = 0

    @property
    def keys(self) -> list[str]:
        return sorted({key for _, key in self.values})

    def read(self, name: str, key: str, start: int, length: int) -> torch.Tensor:
        return self.values[name, key][start : start + length]


def settings(
    stage: int, precision: str = "fp32", micro: int = 2, zero: Any = None, **more: Any
) -> dict[str, Any]:
    """A DeepSpeed JSON for a global batch of 8; at stage 3 not all tiny weights stay gathered."""
    mixed = {} if precision == "fp32" else {precision: {"enabled": True}}
    cut = {"stage3_param_persistence_threshold": 500} if stage == 3 else {}
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": micro,
        "zero_optimization": {"stage": stage, **cut, **(zero or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **mixed,
        **more,
    }


def zero(
    values: dict[str, Any],
    pull: float = 0.0,
    shape: str = "bert_tiny",
    adaptation: Adaptation | None = None,
) -> Any:
    """DeepSpeed around a tiny learner."""
    penalties = [StartingPoint(strength=pull).build()] if pull else []
    learner = tiny.learner(Path(tempfile.mkdtemp()), shape, adaptation)
    return DeepSpeedZero(config=values).build(learner, AdamW(lr=PEAK), penalties, seed=0)


def plain(
    pull: float = 0.0, precision: str = "fp32", shape: str = "bert_tiny", **more: Any
) -> Backend:
    """The reference: one process, the whole batch at once."""
    penalties = [StartingPoint(strength=pull).build()] if pull else []
    mixed = {} if precision == "fp32" else {precision: {"enabled": True}}
    config = Plain(config={"train_batch_size": 8, **mixed, **more})
    learner = tiny.learner(Path(tempfile.mkdtemp()), shape)
    return config.build(learner, AdamW(lr=PEAK), penalties, seed=0)


def curve(backend: Backend, start: int = 0, stop: int = STEPS) -> list[list[float]]:
    """[mean loss of the global batch, gradient norm] of each step."""
    goal = backend.learner.objective
    batches = iter(
        [
            tiny.step_batches(goal, step, backend.rank, backend.world, backend.accumulation)
            for step in range(start, stop)
        ]
    )
    run = Run(backend, batches, Linear(warmup=2), PEAK, STEPS + 1, seed=1)
    values = []
    for step in range(start, stop):
        record = train_step(run, step)
        losses = backend.sum_over_ranks(record.losses)
        assert abs(float(losses[1:].sum() / losses[0]) - 1) < 1e-4
        values.append([float(losses[0] / record.counts[0]), float(record.gradient_norm)])
    return values


def save(backend: Backend) -> Saved:
    """All ranks' fragments put together; counts values owned twice or by nobody."""
    mine = [
        (f.name, f.key, f.shape, f.start, f.tensor.detach().clone()) for f in backend.fragments()
    ]
    ranks = distributed.all_gather_object(mine) if backend.world > 1 else [mine]
    saved = Saved(extra=json.loads(json.dumps(backend.extra_state())))
    seen: dict[tuple[str, str], torch.Tensor] = {}
    for name, key, shape, start, tensor in [piece for rank in ranks for piece in rank]:
        size = int(np.prod(shape))
        whole = saved.values.setdefault((name, key), torch.zeros(size))
        count = seen.setdefault((name, key), torch.zeros(size))
        whole[start : start + len(tensor)] = tensor
        count[start : start + len(tensor)] += 1
    saved.overlaps = sum(int((count > 1).sum()) for count in seen.values())
    saved.holes = sum(int((count == 0).sum()) for count in seen.values())
    return saved


def load(backend: Any, saved: Saved, steps: int = SAVED_AT) -> Any:
    """Put a checkpoint in memory into a backend of any stage."""
    backend.load_fragments(saved.read, saved.keys, steps)
    backend.load_extra_state(saved.extra)
    return backend


def held_out(backend: Backend) -> float:
    batch = tiny.step_batches(backend.learner.objective, 99, 0, 1, 1)[0]
    return float(backend.evaluate(batch).total) / batch.count


def mine(backend: Backend) -> list[torch.Tensor]:
    """Copies of all that this rank owns."""
    return [fragment.tensor.detach().clone() for fragment in backend.fragments()]


def same_everywhere(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Whether two such lists are equal to the bit, on every rank."""
    here = len(first) == len(second) and all(map(torch.equal, first, second))
    return all(distributed.all_gather_object(here))
