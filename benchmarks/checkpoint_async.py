"""P10: how long training stands still for an asynchronous checkpoint, against a synchronous one."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.checkpoint_model import backend, trials
from benchmarks.checkpoint_save import FOLDER

PAIRS, TARGET = 3, 0.10
EVERY, SAVES = 6, 2
"""Steps between saves, and saves a trial; a step takes some tenths of a second here."""


def measure() -> dict[str, Any]:
    """Stall of a save in mode async over that in mode sync, A B B A; median of the pairs.

    The stall is the wall time that the checkpoint hook keeps the training from its next step, as
    the slower rank sees it; a wait for the save before is part of it. ``slowed`` is what the
    writing beside the training costs the steps: those after a save over those before any, in a
    trial of mode async; the two ranks and both writers share the machine's cores.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get(FOLDER)) as place:
        answer = Path(place) / "answer.json"
        arguments = {"folder": place, "pairs": PAIRS, "answer": str(answer)}
        trials("benchmarks.checkpoint_async:on_rank", arguments, Path(place))
        found: dict[str, Any] = json.loads(answer.read_bytes())
    behind, at_once = found["async"], found["sync"]
    ratios = sorted(a["stall"] / b["stall"] for a, b in zip(behind, at_once, strict=True))
    value = round(median(ratios), 3)
    slowed = median(each["after"] / each["before"] for each in behind)
    line = {
        "sync_stall_s": round(median(each["stall"] for each in at_once), 3),
        "async_stall_s": round(median(each["stall"] for each in behind), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "step_s": round(median(each["before"] for each in behind), 3),
        "slowed": round(slowed, 2),
    }
    return {
        "id": "P10",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET,
        "details": [line],
    }


def on_rank(folder: str, pairs: int, answer: str) -> None:
    """All trials, on one rank; rank 0 leaves the answer."""
    from engine import distributed

    seen: dict[str, list[dict[str, float]]] = {"sync": [], "async": []}
    with backend() as (made, step):
        for turn in range(-1, pairs):
            order = ["sync", "async"]
            for mode in order if turn % 2 else order[::-1]:
                root = Path(folder) / f"{mode}-{turn}" / "checkpoints"
                found = _trial(root, mode, made, step)
                # The first turn warms the file system's caches up.
                if turn >= 0:
                    seen[mode].append(found)
                distributed.barrier()
                if made.rank == 0:
                    shutil.rmtree(root.parent)
                distributed.barrier()
        if made.rank == 0:
            Path(answer).write_text(json.dumps(seen), encoding="utf-8")


def _trial(root: Path, mode: str, made: Any, step: Callable[[], None]) -> dict[str, float]:
    """Train, save twice, train: seconds of a step before any save and after one, and of a stall."""
    from engine import distributed
    from engine.checkpoint_policy import CheckpointConfig
    from engine.hooks import CheckpointHook
    from engine.protocols import Progress

    policy = CheckpointConfig.model_validate({"every": EVERY, "keep": 1, "mode": mode})
    hook = CheckpointHook(root, "benchmark", lambda progress: {}, policy, steps=1000)
    hook.on_start(made, Progress(0))
    before, after, stalls = [], [], []
    for number in range(1, EVERY * (SAVES + 1)):
        distributed.barrier()
        began = perf_counter()
        step()
        distributed.barrier()
        (after if number > EVERY else before).append(perf_counter() - began)
        began = perf_counter()
        hook.after_step(made, Progress(number), None)  # type: ignore[arg-type]  # it reads no record
        if number % EVERY == 0:
            stalls.append(max(distributed.all_gather_object(perf_counter() - began)))
    hook.on_end(made, Progress(EVERY * (SAVES + 1) - 1))
    # The first save of a trial makes the room for the copy; a run does that once.
    return {"stall": stalls[-1], "before": median(before), "after": median(after)}
