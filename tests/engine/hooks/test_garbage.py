"""The garbage collector in a run: no collection but at fixed steps, and as before afterwards."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.backends import Plain
from engine.hooks import Garbage
from engine.hooks.garbage import EVERY, SETTLED
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.protocols import Batch, Hook, Progress, Run
from tests.engine import tiny

STEPS = 2 * EVERY + 5


class Watch(Hook):
    """After which steps the collector has run, and in which state it was found."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.collected: list[int] = []
        self.enabled: dict[int, bool] = {}
        self.frozen: dict[int, int] = {}
        self._fails_at = fails_at
        self._runs = 0

    def on_start(self, backend: Any, progress: Progress) -> None:
        self._runs = self._count()

    def after_step(self, backend: Any, progress: Progress, record: Any) -> None:
        if self._count() > self._runs:
            self.collected.append(progress.step)
        self.enabled[progress.step] = gc.isenabled()
        self.frozen[progress.step] = gc.get_freeze_count()
        if progress.step == self._fails_at:
            raise OSError("disk")
        self._runs = self._count()

    @staticmethod
    def _count() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Whatever a test leaves, the next one finds it running."""
    yield
    gc.unfreeze()
    gc.enable()


def run_of(folder: Path, watch: Watch, steps: int = STEPS) -> Run:
    learner = tiny.learner(folder, num_hidden_layers=1)
    backend = Plain(config={"train_batch_size": 2}).build(learner, AdamW(lr=1e-3))
    batch = learner.objective.collate(tiny.examples(0, 2), 5, 2)

    def batches() -> Iterator[list[Batch]]:
        for _ in range(steps):
            # A cycle a step, of what the collector keeps an eye on.
            cycle: list[Any] = [[] for _ in range(1000)]
            cycle.append(cycle)
            yield [batch]

    return Run(backend, batches(), Constant(), 1e-3, steps, 0, (Garbage(), watch))


def test_it_runs_after_fixed_steps_alone(tmp_path: Path) -> None:
    watch = Watch()
    train(run_of(tmp_path, watch))
    settled = [step for step in watch.collected if step >= SETTLED]
    assert settled == [SETTLED, EVERY, 2 * EVERY]
    assert {step for step, on in watch.enabled.items() if not on} == set(range(SETTLED, STEPS + 1))
    assert watch.frozen[SETTLED] > 10_000
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("step", [1, SETTLED, SETTLED + 1])
def test_it_is_as_before_when_a_step_raises(tmp_path: Path, step: int) -> None:
    with pytest.raises(OSError, match="disk"):
        train(run_of(tmp_path, Watch(fails_at=step), steps=SETTLED + 2))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off(tmp_path: Path) -> None:
    gc.disable()
    train(run_of(tmp_path, Watch(), steps=SETTLED + 1))
    assert not gc.isenabled()


def test_it_begins_anew_after_a_rollback() -> None:
    hook = Garbage()
    for _ in range(2):
        hook.on_start(None, Progress(7))  # type: ignore[arg-type]
        for step in range(8, 8 + SETTLED):
            assert gc.isenabled()
            hook.after_step(None, Progress(step), None)  # type: ignore[arg-type]
        assert not gc.isenabled()
        hook.on_end(None, Progress(step))  # type: ignore[arg-type]
        assert gc.isenabled()
