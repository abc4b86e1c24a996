"""The planner held against a census of what ranks hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.deepspeed_json import read_deepspeed
from engine.activations import Pass
from engine.models import read_shape
from engine.parameter_shapes import low_rank, model_shape
from engine.planner import Job, Memory, Weights, memory
from tests.engine import tiny
from tests.warm import WarmWorkers

CHANGES = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
RANK = 4
BUCKET = 200_000
SHAPE = model_shape(read_shape("bert_tiny") | CHANGES, "masked_lm", tiny.VOCABULARY)
NOTHING = Pass(0, 0, 0, 0)


def values(kind: str, stage: int, world: int, **changes: Any) -> dict[str, Any]:
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
    """Name -> what tests/engine/census.py takes."""
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
    given = case["values"]
    penalties = case.get("penalties", 0)
    job = Job(
        low_rank_weights() if "rank" in case else full_weights(),
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


def full_weights() -> Weights:
    return Weights(
        tuple(weight.numel for weight in SHAPE.weights if len(weight.shape) > 1),
        tuple(weight.numel for weight in SHAPE.weights if len(weight.shape) == 1),
    )


def low_rank_weights() -> Weights:
    sides = (side for weight, _ in low_rank(SHAPE, RANK, None) for side in weight.linear or ())
    frozen = tuple(weight.numel for weight in SHAPE.weights)
    return Weights(tuple(RANK * side for side in sides), (), frozen)


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_hold_what_is_planned(world: int, warm: WarmWorkers, tmp_path: Path) -> None:
    asked = {name: case | {"planned": planned(case, world)} for name, case in cases(world).items()}
    arguments = {"folder": str(tmp_path), "cases": asked}
    ended = warm.run("tests.engine.census:take", arguments, world, env={"LOCAL_SIZE": str(world)})
    assert [end.code for end in ended] == [0] * world, ended[0].text
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(world)]
    for name, case in asked.items():
        for point, told in case["planned"].items():
            most = max(found[name][point] for found in ranks)
            # Position ids and counters, of a few kB, are what is not planned.
            assert told == pytest.approx(most, rel=0.01), f"{name}: {point}"


@pytest.mark.parametrize(("stage", "bytes_each"), [(0, 16), (1, 20), (2, 20), (3, 20)])
def test_bytes_a_parameter_of_one_large_tensor(stage: int, bytes_each: int) -> None:
    """fp32 at stage 0; 1 to 3 with low-precision weights, at the optimizer's step."""
    count = 10**9
    kind = "fp32" if stage == 0 else "bf16"
    given = values(kind, stage, 1)
    zero = {**given["zero_optimization"], "sub_group_size": 10**10}
    job = Job(Weights((count,), (1,)), given, 1, 1, NOTHING)
    assert memory(job, zero).step / count == pytest.approx(bytes_each, rel=0.001)


def test_offload_moves_states_to_the_host() -> None:
    job = Job(full_weights(), values("bf16", 2, 4), 4, 1, NOTHING)
    here = memory(job, {"stage": 2, "reduce_bucket_size": BUCKET})
    away = {"stage": 2, "reduce_bucket_size": BUCKET, "offload_optimizer": {"device": "cpu"}}
    there = memory(job, away)
    assert there.rest < here.rest
    assert there.host > 12 * SHAPE.parameters // 4
    cut = {**away, "stage": 3, "stage3_param_persistence_threshold": 0}
    assert memory(job, {**cut, "offload_param": {"device": "cpu"}}).rest < there.rest


def stage_3(**settings: Any) -> Memory:
    job = Job(Weights((1_000_000,) * 8, (1000,)), values("bf16", 3, 2), 2, 1, NOTHING)
    return memory(job, {"stage": 3, **settings})


def test_the_second_copy_within_a_host_is_counted() -> None:
    more = stage_3(zero_hpz_partition_size=2).rest - stage_3().rest
    assert more == 2 * (8_000_000 + 1000) // 2


STAGE_3 = ("param_persistence_threshold", "max_live_parameters", "prefetch_bucket_size")


@pytest.mark.parametrize("key", STAGE_3)
def test_a_setting_of_stage_3_has_two_names(key: str) -> None:
    others = {f"stage3_{other}": 500 for other in STAGE_3 if other != key}
    short, long = stage_3(**others, **{key: 500}), stage_3(**others, **{f"stage3_{key}": 500})
    assert short == long
    assert short != stage_3(**others)


@pytest.mark.parametrize(
    ("preset", "whole", "shared", "host"),
    [
        ("zero2_fp32", 4, 16, 0),
        ("zero3_fp32", 0, 20, 0),
        ("zero2_bf16", 2, 14, 0),
        ("zero2_bf16_fp32_gradients", 2, 16, 0),
        ("zero3_bf16", 0, 16, 0),
        ("zero2_bf16_states", 2, 8, 0),
        ("zero3_bf16_states", 0, 10, 0),
        ("zero1_bf16_offload", 2, 0, 18),
        ("zero3_bf16_offload_optimizer", 0, 2, 18),
        ("zero3_bf16_offload", 0, 0, 20),
    ],
)
def test_bytes_a_parameter_as_the_presets_readme_has_them(
    preset: str, whole: int, shared: int, host: int
) -> None:
    given, world = read_deepspeed(preset), 8
    small = {"reduce_bucket_size": 1}
    if given["zero_optimization"]["stage"] == 3:
        small |= {"stage3_max_live_parameters": 1, "stage3_prefetch_bucket_size": 1}
    job = Job(Weights((10**6,) * 1000, (10**5,)), given, world, 1, NOTHING)
    need = memory(job, given["zero_optimization"] | small)
    assert need.backward / 10**9 == pytest.approx(whole + shared / world, abs=0.01)
    assert need.host / 10**9 == pytest.approx(host / world, abs=0.01)
