"""Resuming a real backend: the steps afterwards are those of an uninterrupted run, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import CheckpointError
from engine.adaptation import FullTraining, LowRank
from engine.backends import Plain
from engine.checkpoint import newest, open_checkpoint, save
from engine.loop import train_step
from engine.optimization import AdamW, Constant
from engine.penalties import StartingPoint
from engine.protocols import Progress, Run
from tests.engine import tiny

FP32 = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
BF16 = FP32 | {"bf16": {"enabled": True}}


def backend(folder: Path, config: dict[str, Any], adaptation: Any = None) -> Any:
    penalties = [StartingPoint(strength=0.1).build()]
    learner = tiny.learner(folder, adaptation=adaptation, hidden_dropout_prob=0.1)
    return Plain(config=config).build(learner, AdamW(lr=1e-2), penalties)


def losses(held: Any, first: int, stop: int) -> list[list[float]]:
    """Losses of these steps, taken."""
    goal = held.learner.objective
    batches = (
        tiny.step_batches(goal, step, 0, 1, held.accumulation) for step in range(first, stop)
    )
    run = Run(held, batches, Constant(), lr=1e-2, steps=stop, seed=1)
    return [train_step(run, step).losses.tolist() for step in range(first, stop)]


@pytest.mark.parametrize("config", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adaptation", [FullTraining(), LowRank(rank=2)], ids=["full", "lora"])
def test_it_goes_on_bit_for_bit(tmp_path: Path, config: dict[str, Any], adaptation: Any) -> None:
    first = backend(tmp_path, config, adaptation.build(0))
    losses(first, 0, 3)
    save(tmp_path / "checkpoints", Progress(3), first, {"cursor": 24}, "recipe")
    expected = losses(first, 3, 7)

    second = backend(tmp_path, config, adaptation.build(0))
    found = newest(tmp_path / "checkpoints", "recipe")
    assert found is not None
    assert found.restore(second) == Progress(3)
    assert losses(second, 3, 7) == expected
    for mine, theirs in zip(first.fragments(), second.fragments(), strict=True):
        assert (mine.name, mine.key) == (theirs.name, theirs.key)
        assert torch.equal(mine.tensor, theirs.tensor), mine.name


def test_every_state_is_saved_once(tmp_path: Path) -> None:
    held = backend(tmp_path, FP32)
    losses(held, 0, 1)
    store = open_checkpoint(save(tmp_path, Progress(1), held, {}, "recipe")).store()
    trained = {name: p for name, p in held.learner.named_parameters() if p.requires_grad}
    assert store.names == list(trained)
    assert store.state_keys == ["exp_avg", "exp_avg_sq", "l2_sp.anchor"]
    for name, parameter in trained.items():
        assert torch.equal(store.whole(name), parameter.detach())


@pytest.mark.parametrize(
    "change", [{"hidden_size": 96}, {"hidden_size": 32}, {"num_hidden_layers": 1}]
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    held = backend(tmp_path, FP32)
    losses(held, 0, 1)
    found = open_checkpoint(save(tmp_path, Progress(1), held, {}, "recipe"))
    other = Plain(config=FP32).build(
        tiny.learner(tmp_path, **change), AdamW(lr=1e-2), [StartingPoint().build()]
    )
    with pytest.raises(CheckpointError, match="made with another model"):
        found.restore(other)


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    held = backend(tmp_path, FP32)
    losses(held, 0, 1)
    found = open_checkpoint(save(tmp_path, Progress(1), held, {}, "recipe"))
    other = Plain(config=FP32).build(tiny.learner(tmp_path), AdamW(lr=1e-2), [])
    with pytest.raises(CheckpointError, match=r"l2_sp\.anchor"):
        found.restore(other)
