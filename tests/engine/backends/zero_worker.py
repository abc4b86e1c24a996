"""One rank of the ZeRO tests: runs every scenario in one process, rank 0 writes the answers."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import torch
from torch.distributed import distributed_c10d

from configs.errors import DataError, ResourceError
from engine import distributed
from engine.adaptation import LowRank
from engine.backends import DeepSpeedZero, Plain
from engine.loop import train_step
from engine.optimization import AdamW, Linear
from engine.penalties import StartingPoint
from engine.protocols import Adaptation, Backend, Run
from tests.engine import tiny

STEPS = 6
SAVED_AT = 3
PEAK = 1e-2
COLLECTIVE_LIMIT = timedelta(seconds=2)
LONG = 3


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


def settings(stage: int, precision: str = "fp32", micro: int = 4, **more: Any) -> dict[str, Any]:
    mixed = {} if precision == "fp32" else {precision: {"enabled": True}}
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": micro,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **mixed,
        **more,
    }


def zero(
    values: dict[str, Any],
    pull: float = 0.0,
    shape: str = "bert_tiny",
    adaptation: Adaptation | None = None,
) -> Backend:
    penalties = [StartingPoint(strength=pull).build()] if pull else []
    learner = tiny.learner(Path(tempfile.mkdtemp()), shape, adaptation)
    return DeepSpeedZero(config=values).build(learner, AdamW(lr=PEAK), penalties, seed=0)


def plain(
    pull: float = 0.0, precision: str = "fp32", shape: str = "bert_tiny", **more: Any
) -> Backend:
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
    run = Run(backend, batches, Linear(warmup=2), PEAK, STEPS, seed=1)
    values = []
    for step in range(start, stop):
        record = train_step(run, step)
        losses = backend.sum_over_ranks(record.losses)
        by_source = losses[1:].sum() / losses[0]
        assert abs(float(by_source) - 1) < 1e-4
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


def load(backend: Backend, saved: Saved, steps: int = SAVED_AT) -> Backend:
    backend.load_fragments(saved.read, saved.keys, steps)
    backend.load_extra_state(saved.extra)
    return backend


def held_out(backend: Backend) -> float:
    batch = tiny.step_batches(backend.learner.objective, 99, 0, 1, 1)[0]
    return float(backend.evaluate(batch).total) / batch.count


Answers = dict[str, Any]


def stages(answers: Answers) -> None:
    for stage in range(4):
        answers[f"fp32 {stage}"] = curve(zero(settings(stage)))
        answers[f"fp32 {stage} pull"] = curve(zero(settings(stage), pull=1.0))
    for stage in range(1, 4):
        answers[f"bf16 {stage}"] = curve(zero(settings(stage, "bf16")))
    for micro in (2, 1):
        answers[f"micro {micro}"] = curve(zero(settings(2, micro=micro)))
    for stage in (0, 1, 3):
        clipped = settings(stage, gradient_clipping=0.1)
        answers[f"clipped {stage}"] = curve(zero(clipped, pull=1.0))


def round_trips(answers: Answers) -> None:
    targets = {("fp32", 0): (0, 1), ("fp32", 1): (0, 1, 2, 3), ("fp32", 2): (2, 3)}
    targets |= {("fp32", 3): (1, 3), ("bf16", 2): (2, 3), ("bf16", 3): (1, 3)}
    for (precision, stage), others in targets.items():
        backend = zero(settings(stage, precision), pull=1.0)
        curve(backend, 0, SAVED_AT)
        saved = save(backend)
        name = f"{precision} {stage}"
        answers[f"gaps {name}"] = [saved.overlaps, saved.holes, len(saved.values)]
        answers[f"on {name}"] = [held_out(backend), curve(backend, SAVED_AT)]
        for other in others:
            loaded = load(zero(settings(other, precision), pull=1.0), saved)
            answers[f"{name} to {other}"] = [held_out(loaded), curve(loaded, SAVED_AT)]
        # A backend that has run already is overwritten whole.
        answers[f"{name} again"] = [held_out(load(backend, saved)), curve(backend, SAVED_AT)]
        alone = load(plain(1.0, precision), saved)
        answers[f"{name} to plain"] = [held_out(alone), curve(alone, SAVED_AT)]


def half_precision(answers: Answers) -> None:
    """fp16 with a loss scale so large that the first steps are skipped."""
    scaled = settings(1, fp16={"enabled": True, "initial_scale_power": 18, "hysteresis": 1})
    try:
        backend = zero(scaled)
    except ResourceError as error:
        answers["fp16 refused"] = str(error)
        return
    curve(backend, 0, SAVED_AT)
    saved = save(backend)
    answers["fp16 extra"] = saved.extra
    answers["on fp16"] = curve(backend, SAVED_AT)
    answers["fp16 to 1"] = curve(load(zero(scaled), saved), SAVED_AT)


def architectures(answers: Answers) -> None:
    for shape in tiny.SHAPES[1:]:
        answers[shape] = curve(zero(settings(3), shape=shape), stop=3)
    for stage in (1, 3):
        llama = zero(settings(stage, "bf16"), shape="llama_tiny")
        curve(llama, 0, 2)
        rotary = [b for n, b in llama.learner.named_buffers() if n.endswith("inv_freq")]
        answers[f"rotary {stage}"] = [str(b.dtype) for b in rotary]
    adapted = zero(settings(3), adaptation=LowRank(rank=4).build(0))
    answers["lora"] = curve(adapted)
    answers["lora names"] = sorted({piece.name for piece in adapted.fragments()})


def waiting(answers: Answers) -> None:
    """Work on one rank that takes longer than a collective may; the last scenario."""
    own = distributed.rank()
    distributed.barrier()
    distributed_c10d._set_pg_timeout(COLLECTIVE_LIMIT)
    answers["on first"] = distributed.on_first(lambda: [sleep(LONG), own][1])
    if own == 1:
        sleep(LONG)
    distributed.wait_for_all()
    told = [
        _error(lambda: distributed.on_first(_fail_with(DataError("no such file")))),
        _error(lambda: distributed.on_first(_fail_with(ZeroDivisionError("by 0")))),
        _error(lambda: distributed.together(_fail_with(DataError("shard 1")) if own else int)),
    ]
    answers["told"] = distributed.all_gather_object(told)
    answers["together"] = distributed.all_gather_object(distributed.together(lambda: own))


def _fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _error(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


SCENARIOS: Sequence[Callable[[Answers], None]] = (
    stages,
    round_trips,
    half_precision,
    architectures,
    waiting,
)


def main(target: Path) -> None:
    torch.set_num_threads(1)
    answers: Answers = {}
    with distributed.joined():
        for scenario in SCENARIOS:
            scenario(answers)
        if distributed.rank() == 0:
            target.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # As the product's worker: the teardown of threads now and then aborts on a CPU.
    sys.stdout.flush()
    os._exit(0)
