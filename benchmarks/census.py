"""P7: what ranks hold, as the bytes of all tensors that live, against the planner."""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import ranks
from engine import distributed
from engine.activations import Pass
from engine.adaptation import FullTraining
from engine.adaptation.lora import LowRank
from engine.backends import DeepSpeedZero, Plain
from engine.models import read_shape
from engine.optimization import AdamW
from engine.parameter_shapes import low_rank, model_shape
from engine.penalties import StartingPoint
from engine.planner import Job, Weights, memory
from engine.stage_memory import whole
from tests.engine import tiny

TARGET = 0.02
CHANGES = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
RANK = 4
BUCKET = 200_000
SHAPE = model_shape(read_shape("bert_tiny") | CHANGES, "masked_lm", tiny.VOCABULARY)
NOTHING = Pass(0, 0, 0, 0)


def values(kind: str, stage: int, world: int, **changes: Any) -> dict[str, Any]:
    """DeepSpeed's JSON; ``changes``: of its ZeRO settings, ``accumulation``, and of ``kind``."""
    zero = {"stage": stage} | ({"reduce_bucket_size": BUCKET} if stage else {})
    accumulation = changes.pop("accumulation", 1)
    precision = {} if kind == "fp32" else {kind: {"enabled": True} | changes.pop(kind, {})}
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // world // accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": zero | changes,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    } | precision


LOW = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def cases(world: int) -> dict[str, dict[str, Any]]:
    """Name -> what ``take`` takes, but ``planned``."""
    found: dict[str, dict[str, Any]] = {
        "fp32 0": {"values": values("fp32", 0, world)},
        "fp32 1": {"values": values("fp32", 1, world)},
        "bf16 1": {"values": values("bf16", 1, world)},
        "bf16 2": {"values": values("bf16", 2, world, accumulation=2)},
        "bf16 3": {"values": values("bf16", 3, world)},
    }
    if world == 1:
        plain = {"train_batch_size": 8, "bf16": {"enabled": True}}
        found |= {
            "bf16 plain": {"values": plain, "plain": True},
            "fp32 3": {"values": values("fp32", 3, world)},
            "lora": {"values": values("bf16", 1, world), "rank": RANK},
            "penalty": {"values": values("bf16", 1, world), "penalties": 1},
            "low states": {"values": values("bf16", 1, world, bf16=LOW)},
            "small groups": {"values": values("bf16", 3, world, sub_group_size=BUCKET)},
        }
    return {name: {"shape": "bert_tiny", "changes": CHANGES} | case for name, case in found.items()}


def planned(case: dict[str, Any], world: int) -> dict[str, int]:
    """Point -> bytes, as the planner has it."""
    given = case["values"]
    penalties = case.get("penalties", 0)
    job = Job(
        low_rank_weights() if "rank" in case else whole(SHAPE),
        given,
        world,
        8 // world // given.get("train_micro_batch_size_per_gpu", 8),
        NOTHING,
        states=2 + penalties,
        pulls=bool(penalties),
        backend="plain" if "plain" in case else "deepspeed",
    )
    need = memory(job, given.get("zero_optimization", {}))
    return {"rest": need.rest, "backward": need.backward, "step": need.step}


def low_rank_weights() -> Weights:
    """With updates of a low rank on every linear layer."""
    updates = tuple(weight.numel for weight in low_rank(SHAPE, RANK, None))
    frozen = tuple(weight.numel for weight in SHAPE.weights)
    return Weights(updates, (), frozen)


def measure() -> dict[str, Any]:
    """The largest deviation from the planner, of the rank that holds most, at any of three points.

    On one rank and on two, at stages 0 to 3 and on the plain backend: at rest, when the last
    gradient has been made, and when the optimizer begins its step.
    """
    with tempfile.TemporaryDirectory() as place, ranks.ready(Path(place)) as call:
        details = [line for world in (1, 2) for line in _of_world(world, Path(place), call)]
    value = max(line["deviation"] for line in details)
    return {
        "id": "P7",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET,
        "details": details,
    }


def _of_world(world: int, folder: Path, call: ranks.Call) -> list[dict[str, Any]]:
    asked = asked_of(world)
    call("benchmarks.census:take", {"folder": str(folder), "cases": asked}, world)
    found = most_held(folder, world)
    lines = []
    for name, case in asked.items():
        told: dict[str, int] = case["planned"]
        held = found[name]
        worst = max(abs(told[point] / held[point] - 1) for point in told)
        points = {point: f"{held[point]} planned {told[point]}" for point in told}
        lines.append({"case": name, "ranks": world, "deviation": round(worst, 4), **points})
    return lines


def asked_of(world: int) -> dict[str, dict[str, Any]]:
    """What ``take`` takes on so many ranks."""
    return {name: case | {"planned": planned(case, world)} for name, case in cases(world).items()}


def most_held(folder: Path, world: int) -> dict[str, dict[str, int]]:
    """Case -> point -> bytes on the rank that holds most, from what ``take`` has written."""
    found = [json.loads((folder / f"rank-{rank}.json").read_bytes()) for rank in range(world)]
    return {
        name: {point: max(rank[name][point] for rank in found) for point in points}
        for name, points in found[0].items()
    }


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
    penalties = [StartingPoint().build(Path)] * case.get("penalties", 0)
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
