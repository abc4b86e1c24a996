"""Where a step would make the host wait for a device: seen on a CPU by the operators it calls."""

import json
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import syncs
from benchmarks.syncs import watch
from engine.backends import DeepSpeedZero, Plain
from engine.hooks import Garbage, MetricsHook, TensorBoardHook
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.protocols import Backend, Hook, Progress, Run, StepRecord
from tests.engine import tiny
from tests.engine.hooks.fakes import FixedThroughput

ROOT = str(Path(__file__).parents[2])
OURS = tuple(f"{ROOT}/{folder}/" for folder in ("engine", "data_pipeline", "downstream"))
SETTINGS = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}}
LAST = 8


class Waits:
    """Collects (operator, whose code called it), while it is entered."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._watch = watch(self.note)

    def __enter__(self) -> "Waits":
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(None, None, None)

    def note(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
        watching = (__file__, syncs.__file__)
        caller = next(f for f in reversed(frames) if f.filename not in watching)
        self.found.append((name, f"{caller.filename}:{caller.lineno}"))

    @property
    def ours(self) -> list[tuple[str, str]]:
        return [each for each in self.found if each[1].startswith(OURS)]


class Between(Hook):
    """Enters after step ``first``, leaves after ``last``."""

    def __init__(self, waits: Waits, first: int, last: int) -> None:
        self._waits, self._first, self._last = waits, first, last

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        if progress.step == self._first:
            self._waits.__enter__()
        elif progress.step == self._last:
            self._waits.__exit__(None, None, None)


def waits_of(backend: Backend, last: int = 6) -> Waits:
    """Of the steps after the third up to ``last`` of a run that logs after step 7."""
    waits, folder = Waits(), Path(tempfile.mkdtemp())
    board = TensorBoardHook(folder / "tensorboard")
    sources, throughput = ("general", "domain"), FixedThroughput()
    metrics = MetricsHook(
        folder / "metrics.jsonl", sources, 7, 100, throughput, [board], measures=("accuracy",)
    )
    hooks = [board, metrics, Garbage(), Between(waits, 3, last)]
    goal: Any = backend.learner.objective
    ready = iter([tiny.step_batches(goal, step, 0, 1, 2) for step in range(LAST)])
    train(Run(backend, ready, Constant(), 1e-3, LAST, 1, hooks))
    return waits


def plain(shape: str) -> Backend:
    learner = tiny.learner(Path(tempfile.mkdtemp()), shape)
    return Plain(config=SETTINGS).build(learner, AdamW(lr=1e-3))


def deepspeed(answer: str, stages: Sequence[int]) -> None:
    """Called in a process of its own; ``answer``: a file for what was found, by stage."""
    found = {}
    for stage in stages:
        learner = tiny.learner(Path(tempfile.mkdtemp()))
        settings: dict[str, Any] = {
            **SETTINGS,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        }
        backend = DeepSpeedZero(config=settings).build(learner, AdamW(lr=1e-3))
        waits = waits_of(backend)
        found[stage] = {"ours": waits.ours, "all": waits.found}
        backend.close()
    Path(answer).write_text(json.dumps(found))
