"""Ranks of the techniques' grid: every technique at every ZeRO stage, in one launch."""

from typing import Any

from engine.protocols import Backend
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
    """Train and save, go on; resume; go on from what the stage before has saved."""
    with told(target) as answers:
        for name in names:
            before: Saved | None = None
            for stage in STAGES:
                answer, before = _cell(TECHNIQUES[name], stage, before)
                answers[f"{name} {stage}"] = answer


def _cell(technique: Technique, stage: int, before: Saved | None) -> tuple[dict[str, Any], Saved]:
    from engine.backends import DeepSpeedZero

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
