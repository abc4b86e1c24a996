"""Ranks of the adaptations' ZeRO tests: one launch, every adaptation at every stage."""

import json
import tempfile
from pathlib import Path
from typing import Any

from engine import distributed
from engine.backends import DeepSpeedZero, Plain
from engine.loop import train_step
from engine.optimization import AdamW, Constant
from engine.protocols import Backend, Batch, Run
from tests.engine import tiny
from tests.engine.adaptation import cases
from tests.engine.backends.zero_cases import load, mine, same_everywhere, save, settings

STEPS = 3
SAVED_AT = 2
RATE = 1e-2
SHAPES = {
    "lora": "gpt2_tiny",
    "bitfit": "bert_tiny",
    "frozen": "modernbert_tiny",
    "houlsby": "roberta_tiny",
    "pfeiffer": "llama_tiny",
    "parallel": "bert_tiny",
    "prefix": "llama_tiny",
    "prompt": "gpt2_tiny",
}
HALF = ("houlsby", "prefix", "prompt")


def plain(kind: str) -> Backend:
    """One process, the whole batch at once."""
    config = Plain(config={"train_batch_size": 8})
    return config.build(_learner(kind), AdamW(lr=RATE), (), seed=0)


def curve(backend: Backend, kind: str, start: int = 0, stop: int = STEPS) -> list[list[float]]:
    """[mean loss of the global batch, gradient norm] of each step."""
    batches = iter([_batches(backend, kind, step) for step in range(start, stop)])
    run = Run(backend, batches, Constant(), RATE, STEPS, seed=1)
    values = []
    for step in range(start, stop):
        record = train_step(run, step)
        total = backend.sum_over_ranks(record.losses)[0]
        values.append([float(total / record.counts[0]), float(record.gradient_norm)])
    return values


def _learner(kind: str) -> Any:
    folder = Path(tempfile.mkdtemp())
    return tiny.learner(folder, SHAPES[kind], cases.KINDS[kind].build(7))


def _batches(backend: Any, kind: str, step: int) -> list[Batch]:
    rows = cases.rows(kind, 8 * STEPS)[8 * step : 8 * (step + 1)]
    share = rows[backend.rank * 8 // backend.world : (backend.rank + 1) * 8 // backend.world]
    size = len(share) // backend.accumulation
    goal = backend.learner.objective
    parts = range(0, len(share), size)
    return [goal.collate(share[first : first + size], seed=5, sources=2) for first in parts]


def every_stage(target: str) -> None:
    """Curves, what is kept, the step after the checkpoint taken again, and by plain torch."""
    answers: dict[str, Any] = {}
    with distributed.joined():
        for kind in SHAPES:
            for stage in (1, 2, 3):
                answers[f"{kind} {stage}"] = _answer(kind, stage)
            if kind in HALF:
                backend = _zero(kind, settings(3, "bf16"))
                answers[f"{kind} bf16"] = {"curve": curve(backend, kind)}
                backend.close()
        if distributed.rank() == 0:
            Path(target).write_text(json.dumps(answers))


def _zero(kind: str, values: dict[str, Any]) -> Any:
    config = DeepSpeedZero(config=values)
    return config.build(_learner(kind), AdamW(lr=RATE), (), seed=0)


def _answer(kind: str, stage: int) -> dict[str, Any]:
    backend = _zero(kind, settings(stage, micro=4))
    first = curve(backend, kind, 0, SAVED_AT)
    saved = save(backend)
    on, after = curve(backend, kind, SAVED_AT), mine(backend)
    load(backend, saved, SAVED_AT)
    again = curve(backend, kind, SAVED_AT)
    answer = {
        "curve": first + on,
        "on": on,
        "again": again,
        "same": same_everywhere(after, mine(backend)),
        "gaps": [saved.overlaps, saved.holes],
        "names": sorted({name for name, _ in saved.values}),
    }
    backend.close()
    answer["alone"] = curve(load(plain(kind), saved, SAVED_AT), kind, SAVED_AT)
    return answer
