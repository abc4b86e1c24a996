"""One rank of the tests of the guard and of averages; rank 0 writes the answers as JSON."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from engine import distributed, faults
from engine.averaging import MovingAverage
from engine.backends import DeepSpeedZero, Plain
from engine.guarding import GuardConfig
from engine.hooks import GuardHook
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.protocols import Backend, Batch, Hook, Progress, Run, StepRecord, WeightAverage
from tests.engine import tiny

STEPS = 9
PEAK = 1e-2
DECAY = 0.7
# Steps are counted from 0; at the last one the gradient of one rank is struck, and no loss.
FAULTS = "nan@loss:step=3,rank=1,micro=1;inf@loss:step=4,micro=0;inf@loss:step=4,micro=1;"
FAULTS += "spike@loss:step=6,rank=0,micro=1"
BAD = (3, 4, 6, 7)
GRADIENT = 7
KINDS = ((0, "fp32"), (1, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16"))
Answers = dict[str, Any]


@dataclass
class Saved:
    """A checkpoint in memory: whole arrays by (parameter, key)."""

    values: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return sorted({key for _, key in self.values})

    def read(self, name: str, key: str, start: int, length: int) -> torch.Tensor:
        return self.values[name, key][start : start + length]


def save(backend: Backend) -> Saved:
    """All ranks' fragments put together."""
    mine = [(f.name, f.key, f.shape, f.start, f.tensor.clone()) for f in backend.fragments()]
    ranks = distributed.all_gather_object(mine) if backend.world > 1 else [mine]
    saved = Saved(extra=json.loads(json.dumps(backend.extra_state())))
    for name, key, shape, start, tensor in [piece for rank in ranks for piece in rank]:
        into = saved.values.setdefault((name, key), torch.zeros(prod(shape)))
        into[start : start + len(tensor)] = tensor
    return saved


def settings(stage: int, precision: str) -> dict[str, Any]:
    """Two micro-batches a rank."""
    mixed = {} if precision == "fp32" else {precision: {"enabled": True}}
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        **mixed,
    }


def backend_of(kind: tuple[int, str] | str, average: WeightAverage | None = None) -> Backend:
    """DeepSpeed at (stage, precision), or plain at a precision; two micro-batches a rank."""
    learner = tiny.learner(Path(tempfile.mkdtemp()), hidden_dropout_prob=0.1)
    optimizer = AdamW(lr=PEAK)
    if isinstance(kind, str):
        mixed = {} if kind == "fp32" else {kind: {"enabled": True}}
        values = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, **mixed}
        return Plain(config=values).build(learner, optimizer, (), 0, average)
    config = DeepSpeedZero(config=settings(*kind))
    return config.build(learner, optimizer, (), 0, average)


class Refusing:
    """A guard that refuses some steps and avoids others, and looks at nothing."""

    def __init__(self, refused: Sequence[int] = (), avoided: Sequence[int] = ()) -> None:
        self._refused = refused
        self._avoided = avoided

    def avoids(self, step: int) -> bool:
        return step in self._avoided

    def judge(self, backend: Any, step: int, losses: Any, counts: Any) -> Any:
        return lambda norm: step not in self._refused


class Records(Hook):
    """Keeps them."""

    def __init__(self) -> None:
        self.kept: list[StepRecord] = []

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        self.kept.append(record)


def go(
    backend: Backend, guard: Any, hooks: Sequence[Hook] = (), first: int = 0, last: int = STEPS
) -> None:
    def batches(step: int) -> list[Batch]:
        goal = backend.learner.objective
        return tiny.step_batches(goal, step, backend.rank, backend.world, backend.accumulation)

    ready = iter([batches(step) for step in range(first, last)])
    run = Run(backend, ready, Constant(), PEAK, last, 1, hooks, guard)
    train(run, Progress(first))


def whole(backend: Backend) -> dict[str, torch.Tensor]:
    """Every state of every parameter, of all ranks."""
    return {f"{name}|{key}": value for (name, key), value in save(backend).values.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def used(backend: Backend) -> list[str]:
    """Of each rank: a digest of the weights that its forward pass uses, as seen by a batch."""
    batch = tiny.step_batches(backend.learner.objective, 99, 0, 1, 1)[0]
    mine = float(backend.evaluate(batch).total).hex()
    return distributed.all_gather_object(mine) if backend.world > 1 else [mine]


@contextmanager
def injected(backend: Backend) -> Iterator[None]:
    """The faults; on one process its rank is the only one."""
    faults.load(FAULTS.replace("rank=1", "rank=0") if backend.world == 1 else FAULTS)
    real = faults.altered

    def altered(point: str, value: torch.Tensor, **where: Any) -> torch.Tensor:
        if (where["step"], where["micro"], backend.rank) == (GRADIENT, 0, backend.world - 1):
            value.register_hook(lambda gradient: gradient * float("nan"))
        return real(point, value, **where)

    faults.altered = altered
    try:
        yield
    finally:
        faults.altered = real
        faults.load("")


class Slowly(Hook):
    """The average of all weights, computed whole after each step that was taken."""

    def __init__(self, backend: Backend) -> None:
        self.average = {name: v for name, v in whole(backend).items() if name.endswith("|fp32")}

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        now = whole(backend)
        if not record.skipped:
            for name in self.average:
                self.average[name] = DECAY * self.average[name] + (1 - DECAY) * now[name]


def load_into(backend: Backend, saved: Saved, steps: int) -> Backend:
    """As ``Checkpoint.restore`` does; the backend may have run already."""
    backend.load_extra_state(saved.extra)
    backend.load_fragments(saved.read, saved.keys, steps)
    return backend


def skip(backend: Backend, path: Path) -> Answers:
    """A run that faults strike under a guard, and one that never tried those steps."""
    initial, slowly, records = save(backend), Slowly(backend), Records()
    config = GuardConfig(spike=2.0, window=2)
    hook = GuardHook(config, path, lambda step: [{"index": step * 8 + i} for i in range(8)])
    with injected(backend):
        go(backend, hook, [hook, records, slowly])
    struck, ranks = whole(backend), used(backend)
    gaps = [
        float((struck[name.replace("|fp32", "|ema")] - value).abs().max())
        for name, value in slowly.average.items()
    ]
    counted = backend.extra_state()["skipped_steps"]
    go(load_into(backend, initial, 0), Refusing(avoided=BAD))
    return {
        "equals the control": same(struck, whole(backend)),
        "finite": all(bool(value.isfinite().all()) for value in struck.values()),
        "ranks": ranks,
        "skipped": [step for step, record in enumerate(records.kept) if record.skipped],
        "counted": [counted, backend.extra_state()["skipped_steps"]],
        "gap of the average": max(gaps),
        "lines": _lines(path) if backend.rank == 0 else [],
    }


def _lines(path: Path) -> list[Answers]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def resume(backend: Backend, initial: Saved) -> Answers:
    """Cut after steps that were all skipped, and after some that were taken."""
    guard = Refusing(refused=[0, 3], avoided=[1])
    go(load_into(backend, initial, 0), guard, last=2)
    early = save(backend)
    go(backend, guard, first=2, last=4)
    saved = save(backend)
    go(backend, guard, first=4, last=6)
    end = whole(backend)
    again = {}
    for name, point, steps in (("none taken", early, 2), ("some taken", saved, 4)):
        go(load_into(backend, point, steps), guard, first=steps, last=6)
        again[name] = same(whole(backend), end)
    return {"again": again, "keys": [early.keys, saved.keys]}


def reshard(backends: Sequence[Backend]) -> list[float]:
    """From the first one's stage to the others': largest differences two steps later."""
    first, *others = backends
    saved = save(first)
    go(first, Refusing(), first=STEPS, last=STEPS + 2)
    control, gaps = whole(first), []
    for other in others:
        go(load_into(other, saved, STEPS), Refusing(), first=STEPS, last=STEPS + 2)
        now = whole(other)
        gaps.append(max(float((now[name] - value).abs().max()) for name, value in control.items()))
    return gaps


def main(folder: str) -> None:
    """On two ranks: every kind of backend."""
    answers: Answers = {}
    with distributed.joined():
        backends = {}
        for kind in KINDS:
            backends[kind] = backend = backend_of(kind, MovingAverage(decay=DECAY).build(1))
            initial = save(backend)
            answers[f"resume {kind}"] = resume(backend, initial)
            load_into(backend, initial, 0)
            answers[f"skip {kind}"] = skip(backend, Path(folder) / f"{kind}.jsonl")
        alone = backend_of("fp32", MovingAverage(decay=DECAY).build(1))
        answers["reshard"] = reshard([*(backends[stage, "fp32"] for stage in (1, 0, 3)), alone])
        if distributed.rank() == 0:
            (Path(folder) / "answers.json").write_text(json.dumps(answers))
