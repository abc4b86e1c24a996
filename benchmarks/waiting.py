"""P6: how long a consumer at goal speed waits for its data, against its step."""

import tempfile
import threading
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import Any

from benchmarks import corpus

GOAL = 600_000
"""Tokens a second of one rank: BERT-base at length 512 on one H200 (the project's goal)."""
LENGTH, BATCH, STEPS, ROUNDS, SEED = 512, 64, 200, 3, 3
TARGET = 0.01


def measure() -> dict[str, Any]:
    """Waiting time over step time, for each masking policy; the worst is the value.

    The consumer sleeps as long as a step takes, as a thread does that waits for a device. Batches
    come from the engine's own prefetch thread: order, packing, masks and tensors.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        corpus.write(Path(place), "domain", 0, 12_000_000)
        corpus.write(Path(place), "general", 1, 4_000_000)
        details = [_policy(name, Path(place)) for name in ("dynamic", "whole_word")]
    value = max(line["waiting"] for line in details)
    return {
        "id": "P6",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET,
        "details": details,
    }


def _policy(name: str, folder: Path) -> dict[str, Any]:
    seen = [_run(name, folder) for _ in range(ROUNDS)]
    step = BATCH * LENGTH / GOAL
    shares = [run["waited_s"] / (STEPS * step) for run in seen]
    return {
        "policy": name,
        "waiting": round(median(shares), 4),
        "lowest": round(min(shares), 4),
        "highest": round(max(shares), 4),
        "step_ms": round(1000 * step, 1),
        "made_mtok_per_cpu_s": round(
            STEPS * BATCH * LENGTH / median(run["cpu_s"] for run in seen) / 1e6, 1
        ),
    }


def _run(name: str, folder: Path) -> dict[str, float]:
    from data_pipeline.streaming import TokenStream
    from engine.batches import Batches
    from engine.objectives.mlm import MaskedLanguageModelling

    stream = TokenStream.open(corpus.mixture(folder, {"domain": 0.8, "general": 0.2}), Path, SEED)
    config = MaskedLanguageModelling.model_validate({"masking": {"name": name}})
    objective: Any = config.build(stream.special, stream.vocabulary_size)
    cpu: dict[int, float] = {}

    def make(step: int) -> list[Any]:
        begun = thread_time()
        rows = stream.examples(step * BATCH, (step + 1) * BATCH)
        made = [objective.collate(rows, SEED, 2)]
        cpu[step] = thread_time() - begun
        return made

    waited = 0.0
    with Batches(make, 0, STEPS + 1) as batches:
        next(batches)  # the first is what D3 is about
        for _ in range(STEPS):
            sleep(BATCH * LENGTH / GOAL)
            begun = perf_counter()
            next(batches)
            waited += perf_counter() - begun
    assert threading.active_count() == 1
    return {"waited_s": waited, "cpu_s": sum(cpu.values()) - cpu[0]}
