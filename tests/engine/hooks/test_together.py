"""All hooks around the real loop: an interrupted run leaves what an uninterrupted one leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.backends import Plain
from engine.checkpoint import newest
from engine.checkpoint_policy import CheckpointConfig
from engine.hooks import CheckpointHook, MetricsHook, TensorBoardHook, Throughput, ValidationHook
from engine.loop import train
from engine.optimization import AdamW, Linear
from engine.protocols import Hook, Progress, Run
from tests.engine import tiny
from tests.engine.hooks.test_tensorboard import make_older, scalars

STEPS = 10
CONFIG = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
TIMING = (
    *("seconds", "tokens_per_second", "tflops", "mfu", "step_seconds"),
    *("memory", "data_wait", "restarts"),
)


class Interrupted(Exception):  # noqa: N818 -- no error of the program
    """Somebody pulled the plug."""


class Plug(Hook):
    """Raises after a step."""

    def __init__(self, step: int | None) -> None:
        self._step = step

    def after_step(self, backend: Any, progress: Progress, record: Any) -> None:
        del backend, record
        if progress.step == self._step:
            raise Interrupted


def hooks(folder: Path, goal: Any, plug: int | None) -> list[Hook]:
    board = TensorBoardHook(folder / "tensorboard")
    held_out = {"general": [goal.collate(tiny.examples(900, 4), 7, 2)]}
    metrics = MetricsHook(
        folder / "metrics.jsonl",
        ("general", "domain"),
        3,
        STEPS,
        Throughput(goal.architecture, tiny.LENGTH),
        sinks=[board],
        measures=goal.measures,
    )
    validation = ValidationHook(folder / "validation.jsonl", held_out, 5, STEPS, sinks=[board])
    before = [board, metrics, validation]

    def state(progress: Progress) -> dict[str, Any]:
        return {"cursor": progress.step * 8, "hooks": {h.name: h.state_dict() for h in before}}

    policy = CheckpointConfig(every=4, keep=2)
    saving = CheckpointHook(folder / "checkpoints", "recipe", state, policy, STEPS)
    return [*before, saving, Plug(plug)]


def go(folder: Path, plug: int | None = None) -> Progress:
    """What a stage does: build, resume if there is something, train."""
    make_older(folder / "tensorboard")
    learner = tiny.learner(folder, hidden_dropout_prob=0.1)
    backend: Any = Plain(config=CONFIG).build(learner, AdamW(lr=1e-2), [])
    around = hooks(folder, learner.objective, plug)
    found = newest(folder / "checkpoints", "recipe")
    progress = Progress()
    if found is not None:
        progress = found.restore(backend)
        saved = found.state["hooks"]
        for hook in around:
            if hook.name in saved:
                hook.load_state_dict(saved[hook.name])
    batches = (
        tiny.step_batches(learner.objective, step, 0, 1, backend.accumulation)
        for step in range(progress.step, STEPS)
    )
    run = Run(backend, batches, Linear(warmup=0.2), 1e-2, STEPS, 1, around)
    return train(run, progress)


def untimed(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def test_an_interrupted_run_leaves_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    assert go(tmp_path / "whole") == Progress(STEPS)
    for plug in (2, 6, 9):
        with pytest.raises(Interrupted):
            go(tmp_path / "cut", plug)
    assert go(tmp_path / "cut") == Progress(STEPS)

    for name in ("metrics.jsonl", "validation.jsonl"):
        assert untimed(tmp_path / "cut" / name) == untimed(tmp_path / "whole" / name), name
    assert [line["step"] for line in untimed(tmp_path / "cut" / "metrics.jsonl")] == [3, 6, 9, 10]
    shown = untimed(tmp_path / "cut" / "metrics.jsonl")
    for tag, key in (("1 learning/loss", "loss"), ("1 learning/accuracy", "accuracy")):
        expected = [(line["step"], pytest.approx(line[key])) for line in shown]
        assert scalars(tmp_path / "cut" / "tensorboard", tag) == expected
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["latest", "step-10", "step-8"]
    one, two = newest(checkpoints, "recipe"), newest(tmp_path / "whole" / "checkpoints", "recipe")
    assert one is not None
    assert two is not None
    for name in one.store().names:
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            mine, theirs = one.store().whole(name, key), two.store().whole(name, key)
            assert mine.equal(theirs), (name, key)
    assert go(tmp_path / "cut") == Progress(STEPS)
