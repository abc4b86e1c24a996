"""P8: calls and bytes of a real optimizer step's collectives, counted, against the planner."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import collectives, ranks

WORLD, ROWS = 2, 8
BUCKET = 20_000
"""Values: some of the tiny models' matrices are larger, and some buckets hold several."""
_SMALL = {
    "stage3_param_persistence_threshold": 100,
    "stage3_prefetch_bucket_size": 10_000,
    "stage3_max_live_parameters": 40_000,
    "stage3_max_reuse_distance": 10_000,
}


def case(shape: str, kind: str, stage: int, accumulation: int = 1, **zero: Any) -> dict[str, Any]:
    """What ``collectives.count`` takes."""
    precision = {} if kind == "fp32" else {kind: {"enabled": True}}
    return {
        "shape": shape,
        "changes": {"num_hidden_layers": 3} if not shape.startswith("gpt2") else {"n_layer": 3},
        "values": {
            "train_batch_size": ROWS,
            "train_micro_batch_size_per_gpu": ROWS // WORLD // accumulation,
            "zero_optimization": {"stage": stage, **zero},
            "zero_allow_untested_optimizer": True,
            **precision,
        },
    }


def cases() -> dict[str, dict[str, Any]]:
    """All stages, with and without accumulation, in fp32 and bf16, and DeepSpeed's switches."""
    small = {"reduce_bucket_size": BUCKET}
    found: dict[str, dict[str, Any]] = {}
    for stage in range(4):
        for kind in ("fp32", "bf16") if stage else ("fp32",):
            for accumulation in (1, 2):
                name = f"stage {stage}, {kind}, accumulation {accumulation}"
                found[name] = case("bert_tiny", kind, stage, accumulation)
    for stage in (1, 2, 3):
        found[f"stage {stage}, small buckets"] = case("bert_tiny", "bf16", stage, 2, **small)
        overlap = stage != 3
        word = "overlapped" if overlap else "not overlapped"
        found[f"stage {stage}, {word}"] = case(
            "bert_tiny", "bf16", stage, overlap_comm=overlap, **small
        )
        whole = case("bert_tiny", "bf16", stage, reduce_scatter=False, **small)
        found[f"stage {stage}, reduced whole"] = whole
    for stage in (1, 2):
        found[f"stage {stage}, rank by rank"] = case(
            "bert_tiny", "bf16", stage, use_multi_rank_bucket_allreduce=False, **small
        )
    found |= techniques()
    for shape in ("bert", "roberta", "modernbert", "gpt2", "llama", "mixtral"):
        found[f"stage 3, {shape}, weights released"] = case(
            f"{shape}_tiny", "bf16", 3, 2, **small, **_SMALL
        )
    return found


def techniques() -> dict[str, dict[str, Any]]:
    """More groups of weights, matrices that are put together, and a teacher beside the model."""
    small = {"reduce_bucket_size": BUCKET}
    muon = {"name": "muon", "lr": 1e-3}
    apart = {"name": "adamw", "lr": 1e-3, "layer_decay": 0.9}
    found: dict[str, dict[str, Any]] = {}
    for stage in (1, 2, 3):
        # Where two partitions meet a matrix is cut.
        uneven = {"changes": {"num_hidden_layers": 3, "intermediate_size": 96}}
        plain = case("bert_tiny", "bf16", stage)
        found[f"stage {stage}, muon"] = plain | {"optimizer": muon} | uneven
        plain = case("bert_tiny", "bf16", stage, **small)
        found[f"stage {stage}, layer decay"] = plain | {"optimizer": apart}
    for shape, layers in (("bert", "num_hidden_layers"), ("gpt2", "n_layer")):
        teacher = {layers: 2}
        found[f"stage 3, {shape}, teacher"] = case(f"{shape}_tiny", "bf16", 3, 2) | {
            "teacher": teacher
        }
        released = case(f"{shape}_tiny", "bf16", 3, 2, **small, **_SMALL)
        found[f"stage 3, {shape}, teacher, weights released"] = released | {"teacher": teacher}
    found["stage 3, muon, small groups"] = case("bert_tiny", "bf16", 3, sub_group_size=BUCKET) | {
        "optimizer": muon
    }
    return found


def planned(given: dict[str, Any]) -> collectives.Counted:
    """The planner's answer for a case."""
    from engine.activations import Pass
    from engine.adaptation import FullTraining
    from engine.communication import communication
    from engine.models import read_shape
    from engine.parameter_shapes import ModelShape, model_shape
    from engine.planner import Job
    from engine.stage_memory import weights_of
    from tests.engine import tiny

    values = given["values"]
    decodes = given["shape"] in tiny.DECODERS

    def shape(changes: dict[str, Any]) -> ModelShape:
        values = read_shape(given["shape"]) | changes
        return model_shape(values, "causal_lm" if decodes else "masked_lm", tiny.VOCABULARY)

    adapted: Any = SimpleNamespace(
        adaptation=FullTraining(), optimizer=collectives.optimizer(given)
    )
    teacher = shape(given["teacher"]) if "teacher" in given else None
    weights = weights_of(adapted, shape(given["changes"]), teacher)
    accumulation = ROWS // WORLD // values["train_micro_batch_size_per_gpu"]
    job = Job(weights, values, WORLD, accumulation, Pass(0, 0, 0, 0), sources=2)
    return collectives.planned(communication(job, values["zero_optimization"]))


def measure() -> dict[str, Any]:
    """The share of cases in which calls and bytes are the planner's, exactly, on both ranks."""
    asked = cases()
    with tempfile.TemporaryDirectory() as place, ranks.ready(Path(place)) as call:
        call("benchmarks.collectives:count", {"folder": place, "cases": asked}, WORLD)
        found = [
            json.loads((Path(place) / f"rank-{rank}.json").read_bytes()) for rank in range(WORLD)
        ]
    details = [
        _line(name, planned(given), [rank[name] for rank in found]) for name, given in asked.items()
    ]
    value = round(sum(line["equal"] for line in details) / len(details), 3)
    return {"id": "P8", "value": value, "target": 1.0, "reached": value == 1.0, "details": details}


def _line(name: str, told: collectives.Counted, found: list[dict[str, Any]]) -> dict[str, Any]:
    counted = [{kind: tuple(numbers) for kind, numbers in rank.items()} for rank in found]
    line: dict[str, Any] = {"case": name, "equal": all(rank == told for rank in counted)}
    line |= {kind: f"{calls} calls, {size} bytes" for kind, (calls, size) in told.items()}
    if not line["equal"]:
        line["counted"] = counted
    return line
