"""What a rank holds: the bytes of all tensors that live, at three points of a training step."""

import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engine import distributed
from engine.adaptation import FullTraining
from engine.adaptation.lora import LowRank
from engine.backends import DeepSpeedZero, Plain
from engine.optimization import AdamW
from engine.penalties import StartingPoint
from tests.engine import tiny


def live_bytes() -> int:
    """Of the storages behind all tensors that Python, or a parameter's gradient, can reach."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def settled_bytes(limit: float) -> int:
    """As above, once it is within the limit, or after five seconds.

    A thread of gloo drops what it has reduced a moment (0.1 s were seen) after the reduction's
    caller goes on.
    """
    end = time.monotonic() + 5.0
    while (found := live_bytes()) > limit and time.monotonic() < end:
        time.sleep(0.01)
    return found


def take(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Each case on all ranks; every rank writes ``rank-N.json``: case -> point -> bytes."""
    distributed.start()
    found = {
        name: _points(Path(folder) / f"{distributed.rank()}", case) for name, case in cases.items()
    }
    (Path(folder) / f"rank-{distributed.rank()}.json").write_text(json.dumps(found))


def _points(folder: Path, case: Mapping[str, Any]) -> dict[str, int]:
    base = live_bytes()
    expected: Mapping[str, int] = case["planned"]

    def held(point: str) -> int:
        return settled_bytes(base + 1.01 * expected[point]) - base

    adaptation = (
        LowRank(rank=case["rank"]).build(1) if case.get("rank") else FullTraining().build(1)
    )
    learner = tiny.learner(folder, case["shape"], adaptation, **case["changes"])
    goal = learner.objective
    kind = Plain if case.get("plain") else DeepSpeedZero
    penalties = [StartingPoint().build()] * case.get("penalties", 0)
    backend = kind(config=case["values"]).build(learner, AdamW(lr=1e-3), penalties)
    optimizer: Any = backend._optimizer
    points: dict[str, int] = {}

    def look(step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            points["step"] = max(points.get("step", 0), held("step"))
            return step(*given)

        return watched

    optimizer.step = look(optimizer.step)
    # The states come into being in the first step.
    for number in range(2):
        points.clear()
        batches = tiny.step_batches(goal, number, backend.rank, backend.world, backend.accumulation)
        for batch in batches:
            loss = backend.forward(batch)
            backend.backward(loss, torch.tensor(100.0))
            del loss
        points["backward"] = held("backward")
        backend.step(1e-3)
        points["rest"] = held("rest")
    return points
