"""A stage that is watched by a probe, in one process or in several."""

from pathlib import Path
from typing import Any

from configs.stage import StageContext
from downstream.pretraining import ProbedPretraining
from tests.downstream import tiny

STEPS = 6
PROBE = {"task": "stage:rows", "every": 2, "rows": {"train": 60, "dev": 30}, "length": 24}


def prepare(place: Path) -> Path:
    """A model with dropout, text to train on, text to keep, and a task."""
    model = tiny.model_folder(place / "model", hidden_dropout_prob=0.1)
    half = tiny.WORDS // 2
    # Who learns the one unlearns the words of the other.
    for seed, name in enumerate(("domain", "general")):
        tiny.shard_folder(place / name, model, seed, (seed * half, (seed + 1) * half))
    tiny.task_folder(place)
    return place


def stage(place: Path, **changes: Any) -> ProbedPretraining:
    values = {
        "kind": "pretrain",
        "model": {"name": "pretrained", "location": str(place / "model")},
        "data": {"length": 24, "sources": {"domain": {"shards": str(place / "domain")}}},
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "constant"},
        "steps": STEPS,
        "backend": {"name": "plain", "config": {"train_batch_size": 8}},
        "checkpoint": {"every": 6},
        "log_every": 1,
        "probes": {"parts": PROBE},
    }
    return ProbedPretraining.model_validate(values | changes)


def context(place: Path, folder: Path) -> StageContext:
    return tiny.context("dapt", folder, rows=place / "rows")


def deciding(place: Path, backend: dict[str, Any]) -> ProbedPretraining:
    """All that measures and decides at once; it ends early."""
    return stage(
        place,
        backend=backend,
        averaging={"name": "ema", "decay": 0.5},
        validation={"every": 2, "rows": 12, "sets": {"kept": str(place / "general")}},
        forgetting={"set": "kept", "above": [{"floors": 0.01, "do": "lower_rate"}]},
        choose={"by": "probe/parts/accuracy", "patience": 2, "least_change": 1.0},
        checkpoint={"every": 3, "keep": 1},
        steps=12,
    )
