"""Ranks of the techniques' grid: every technique at every ZeRO stage, in one launch."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from engine.backends import DeepSpeedZero
from engine.fisher import SampledLabels, SquaredGradients
from engine.learner import Learner
from engine.objectives import CausalLanguageModelling, MaskedLanguageModelling
from engine.protocols import Backend
from tests.engine import tiny
from tests.engine.backends.zero_cases import (
    Saved,
    curve,
    held_out,
    load,
    mine,
    same_everywhere,
    save,
    settings,
)
from tests.engine.backends.zero_worker import told
from tests.engine.techniques import TECHNIQUES, Technique

SAVED_AT = 3
STAGES = (1, 2, 3)


def grid(target: str, names: list[str]) -> None:
    """Every technique at every stage; and sums of squared gradients, as ``importances STAGE``."""
    with told(target) as answers:
        for name in names:
            before: Saved | None = None
            for stage in STAGES:
                answers[f"{name} {stage}"], before = _cell(TECHNIQUES[name], stage, before)
        for stage in STAGES:
            answers[f"importances {stage}"] = _importances(stage)


def sampled(folder: Path, shape: str) -> Learner:
    """A learner whose labels are its own predictions, for the Fisher information."""
    asked = CausalLanguageModelling() if shape in tiny.DECODERS else MaskedLanguageModelling()
    goal = SampledLabels(asked).build(tiny.SPECIAL, tiny.VOCABULARY)
    return Learner(tiny.learner(folder, shape).backbone, goal)


def look(backend: Backend, step: int) -> None:
    """One batch of 8 rows for the sums of squared gradients, as the stage does it."""
    goal = backend.learner.objective
    for batch in tiny.step_batches(goal, step, backend.rank, backend.world, backend.accumulation):
        backend.backward(backend.forward(batch), torch.ones(()))
    backend.step(1.0)


def _importances(stage: int) -> dict[str, float]:
    """Sums of squared gradients over two batches: norms by parameter and key."""
    config = DeepSpeedZero(config=settings(stage, gradient_clipping=0.0))
    learner = sampled(Path(tempfile.mkdtemp()), "bert_tiny")
    backend = config.build(learner, SquaredGradients(), (), 0)
    look(backend, 0)
    look(backend, 1)
    values = save(backend).values
    backend.close()
    return {f"{name}|{key}": float(value.double().norm()) for (name, key), value in values.items()}


def _cell(technique: Technique, stage: int, before: Saved | None) -> tuple[dict[str, Any], Saved]:
    """Train and save, go on; resume; go on from what the stage before has saved."""
    config = DeepSpeedZero(config=settings(stage))
    backend = technique.build(config)
    answer: dict[str, Any] = {"curve": watched(backend, 0, SAVED_AT)}
    saved = save(backend)
    answer["saved"] = {f"{n}|{k}": float(v.double().norm()) for (n, k), v in saved.values.items()}
    answer["gaps"] = [saved.overlaps, saved.holes]
    answer["swapped"] = swapped(backend)
    answer["on"] = watched(backend, SAVED_AT)
    end = mine(backend)
    backend.close()
    fresh = load(technique.build(config), saved)
    answer["resumed"] = watched(fresh, SAVED_AT)
    answer["to the bit"] = same_everywhere(end, mine(fresh))
    if before is not None:
        load(fresh, before)
        answer["resharded"] = watched(fresh, SAVED_AT)
    fresh.close()
    return answer, saved


def watched(backend: Backend, start: int, stop: int | None = None) -> list[list[float]]:
    """The curve, each step with the norm of its change of the weights."""
    backend.measure_update = True
    values = []
    for step in range(start, stop or SAVED_AT + 2):
        (found,) = curve(backend, step, step + 1)
        norm = backend.update_norm()
        values.append([*found, -1.0 if norm is None else float(norm)])
    return values


def swapped(backend: Backend) -> list[Any]:
    """Held-out loss with the average's weights, and whether all is as before afterwards."""
    if backend.average_key is None:
        return []
    before, own = mine(backend), held_out(backend)
    with backend.swapped(backend.average_key):
        inside = held_out(backend)
    return [inside, own == held_out(backend), same_everywhere(before, mine(backend))]
