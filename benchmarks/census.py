"""P7: what ranks hold, as the bytes of all tensors that live, against the planner."""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import ranks
from benchmarks.collectives import optimizer, taught
from engine import distributed
from engine.activations import Pass
from engine.adaptation import FullTraining
from engine.adaptation.lora import LowRank
from engine.backends import DeepSpeedZero, Plain
from engine.models import read_shape
from engine.parameter_shapes import model_shape
from engine.penalties import StartingPoint
from engine.penalties.ewc import ElasticPull
from engine.planner import Job, memory
from engine.protocols import WeightPenalty
from engine.stage_memory import weights_of
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


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
"""A teacher of another shape."""
TECHNIQUES: dict[str, dict[str, Any]] = {
    "lion": {"optimizer": {"name": "lion", "lr": 1e-3}},
    "muon": {"optimizer": {"name": "muon", "lr": 1e-3}},
    "layer decay": {"optimizer": {"name": "adamw", "lr": 1e-3, "layer_decay": 0.9}},
    "rates": {
        "optimizer": {"name": "muon", "lr": 1e-3, "rates": {"backbone.bert.encoder.layer.2": 0.5}}
    },
    "ewc": {"penalties": ["ewc"]},
    "distillation": {"teacher": SMALL},
}
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
            "penalty": {"values": values("bf16", 1, world), "penalties": ["l2_sp"]},
            "low states": {"values": values("bf16", 1, world, bf16=LOW)},
            "small groups": {"values": values("bf16", 3, world, sub_group_size=BUCKET)},
        }
    for stage in (1, 2, 3):
        for name, technique in TECHNIQUES.items():
            found[f"{name} {stage}"] = {"values": values("bf16", stage, world)} | technique
    return {name: {"shape": "bert_tiny", "changes": CHANGES} | case for name, case in found.items()}


def planned(case: dict[str, Any], world: int) -> dict[str, int]:
    """Point -> bytes, as the planner has it."""
    given = case["values"]
    adapted: Any = SimpleNamespace(adaptation=adaptation(case), optimizer=optimizer(case))
    teacher = (
        model_shape(read_shape("bert_tiny") | case["teacher"], "masked_lm", tiny.VOCABULARY)
        if "teacher" in case
        else None
    )
    job = Job(
        weights_of(adapted, SHAPE, teacher),
        given,
        world,
        8 // world // given.get("train_micro_batch_size_per_gpu", 8),
        NOTHING,
        pulls=sum(len(penalty.keys) for penalty in penalties(case)),
        backend="plain" if "plain" in case else "deepspeed",
    )
    need = memory(job, given.get("zero_optimization", {}))
    return {"rest": need.rest, "backward": need.backward, "step": need.step}


def adaptation(case: Mapping[str, Any]) -> FullTraining | LowRank:
    """All of the model, or updates of a low rank on every linear layer."""
    return LowRank(rank=case["rank"]) if "rank" in case else FullTraining()


def penalties(case: Mapping[str, Any]) -> list[WeightPenalty]:
    """Those that it names; EWC with importances of zero, which take as much room as others."""
    kinds: dict[str, Callable[[], WeightPenalty]] = {
        "l2_sp": lambda: StartingPoint().build(),
        "ewc": lambda: ElasticPull(1.0, []),
    }
    return [kinds[name]() for name in case.get("penalties", ())]


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

    learner = tiny.learner(folder, case["shape"], adaptation(case).build(1), **case["changes"])
    if "teacher" in case:
        learner = taught(folder, learner, case)
    goal = learner.objective
    kind = Plain if case.get("plain") else DeepSpeedZero
    backend = kind(config=case["values"]).build(learner, optimizer(case), penalties(case))
    stepping: Any = backend._optimizer
    points: dict[str, int] = {}

    def look(step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            points["step"] = max(points.get("step", 0), held("step"))
            return step(*given)

        return watched

    stepping.step = look(stepping.step)
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
