"""The loop: order of events, endings, the mean of a step, and dropout keyed by the step."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from configs.errors import DataError, Preempted
from engine.backends import Plain
from engine.loop import train, train_step
from engine.optimization import AdamW, Constant
from engine.protocols import Backend, Batch, Hook, Loss, Progress, Run, StepRecord
from tests.engine import tiny


class Diary(Hook):
    def __init__(self, name: str, pages: list[str], fails_at: int | None = None) -> None:
        self.name = name
        self.pages = pages
        self.fails_at = fails_at

    def on_start(self, backend: Backend, progress: Progress) -> None:
        self.pages.append(f"{self.name} starts at {progress.step}")

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        self.pages.append(f"{self.name} {progress.step}")
        if progress.step == self.fails_at:
            raise OSError("disk")

    def on_end(self, backend: Backend, progress: Progress) -> None:
        self.pages.append(f"{self.name} ends at {progress.step}")


class Noise:
    """An objective over a single weight, whose loss is that weight times a random number."""

    architecture = "encoder"
    measures = ("accuracy",)

    def modules(self, backbone: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict()

    def collate(self, examples: Sequence[object], seed: int, sources: int) -> Batch:
        return Batch({"x": torch.ones(len(examples))}, len(examples), 1, (1, 0), (0, 1))

    def loss(self, learner: nn.Module, tensors: dict[str, torch.Tensor]) -> Loss:
        noise = torch.rand(()) if learner.backbone.training else torch.ones(())
        total = (learner.backbone.weight * tensors["x"]).sum() * noise
        by_source = torch.stack([total.detach(), total.detach() * 0])
        return Loss(total, by_source, by_source[None] * 2)


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))


def run_of(
    pages: Sequence[Hook] = (), steps: int = 3, accumulation: int = 1, made: int | None = None
) -> Run:
    from engine.learner import Learner

    goal = Noise()
    config = {"train_batch_size": accumulation, "train_micro_batch_size_per_gpu": 1}
    learner = Learner(OneWeight(), goal)
    backend = Plain(config=config).build(learner, AdamW(lr=0.1), (), 0)
    one = [goal.collate([0], 0, 2)] * accumulation
    batches = iter([one] * (steps if made is None else made))
    return Run(backend, batches, Constant(), 0.1, steps, 7, tuple(pages))


def test_hooks_are_called_in_order_and_end_in_reverse():
    pages: list[str] = []
    end = train(run_of([Diary("a", pages), Diary("b", pages)], steps=1))
    assert end == Progress(1)
    assert pages == [
        "a starts at 0",
        "b starts at 0",
        "a 1",
        "b 1",
        "b ends at 1",
        "a ends at 1",
    ]


def test_every_started_hook_ends_when_one_raises():
    pages: list[str] = []
    with pytest.raises(OSError, match="disk"):
        train(run_of([Diary("a", pages), Diary("b", pages, fails_at=2)]))
    assert pages[-2:] == ["b ends at 2", "a ends at 2"]


def test_goes_on_from_progress():
    pages: list[str] = []
    train(run_of([Diary("a", pages)]), Progress(2))
    assert pages == ["a starts at 2", "a 3", "a ends at 3"]


def test_counts_are_sums_over_micro_batches():
    record = train_step(run_of(accumulation=3), 0)
    assert record.counts.tolist() == [3, 3, 3, 0, 0, 3]
    assert record.losses.shape == (3,)
    assert torch.equal(record.losses[0], record.losses[1])


def test_dropout_is_a_function_of_the_step_and_the_micro_batch():
    first = [train_step(run_of(), step).losses[0] for step in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    twice = train_step(run_of(accumulation=2), 0).losses[0]
    assert twice != 2 * first[0]


def test_too_few_batches_or_micro_batches_are_named():
    with pytest.raises(DataError, match="step 1 of 3: the batches ended"):
        train(run_of(made=1))
    run = run_of(accumulation=2)
    short = Run(run.backend, iter([[]]), run.schedule, 0.1, 1, 7)
    with pytest.raises(DataError, match="0 micro-batches, but the backend accumulates 2"):
        train(short)


def test_loss_falls_on_one_batch(tmp_path):
    learner = tiny.learner(tmp_path)
    backend = Plain(config={"train_batch_size": 8}).build(learner, AdamW(lr=3e-3), (), 0)
    batch = learner.objective.collate(tiny.examples(0, 8), 5, 2)
    before = float(backend.evaluate(batch).total)
    train(Run(backend, iter([[batch]] * 15), Constant(), 3e-3, 15, 0))
    assert float(backend.evaluate(batch).total) < 0.5 * before


class AskedInHooks:
    """All ranks agree to stop while a step's hooks run."""

    def __init__(self, pages: list[str], page: str) -> None:
        self._pages = pages
        self._page = page

    @property
    def is_agreed(self) -> bool:
        return self._page in self._pages

    def begin(self) -> None:
        pass

    def agreed(self) -> bool:
        return self.is_agreed


@pytest.mark.parametrize("step", [1, 3])
def test_a_stop_in_the_hooks_of_any_step_ends_the_run_after_them(step: int) -> None:
    pages: list[str] = []
    asked = replace(
        run_of([Diary("a", pages), Diary("b", pages)]), stop=AskedInHooks(pages, f"a {step}")
    )
    with pytest.raises(Preempted, match=f"after step {step} of 3, its state saved"):
        train(asked)
    assert pages[-3:] == [f"b {step}", f"b ends at {step}", f"a ends at {step}"]
