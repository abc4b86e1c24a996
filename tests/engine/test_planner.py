"""The planner held against a census of what ranks hold."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.census import BUCKET, NOTHING, SHAPE, asked_of, most_held, values
from configs.deepspeed_json import read_deepspeed
from engine.planner import Group, Job, Memory, Weights, memory
from engine.stage_memory import whole
from tests.warm import WarmWorkers


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_hold_what_is_planned(world: int, warm: WarmWorkers, tmp_path: Path) -> None:
    asked = asked_of(world)
    arguments = {"folder": str(tmp_path), "cases": asked}
    ended = warm.run("benchmarks.census:take", arguments, world, env={"LOCAL_SIZE": str(world)})
    assert [end.code for end in ended] == [0] * world, ended[0].text
    held = most_held(tmp_path, world)
    for name, case in asked.items():
        # Position ids and counters, of a few kB, are what is not planned.
        assert case["planned"] == pytest.approx(held[name], rel=0.01), name


@pytest.mark.parametrize(("stage", "bytes_each"), [(0, 16), (1, 20), (2, 20), (3, 20)])
def test_bytes_a_parameter_of_one_large_tensor(stage: int, bytes_each: int) -> None:
    """fp32 at stage 0; 1 to 3 with low-precision weights, at the optimizer's step."""
    count = 10**9
    kind = "fp32" if stage == 0 else "bf16"
    given = values(kind, stage, 1)
    zero = {**given["zero_optimization"], "sub_group_size": 10**10}
    job = Job(Weights((Group((count,)), Group((1,)))), given, 1, 1, NOTHING)
    assert memory(job, zero).step / count == pytest.approx(bytes_each, rel=0.001)


def test_offload_moves_states_to_the_host() -> None:
    job = Job(whole(SHAPE), values("bf16", 2, 4), 4, 1, NOTHING)
    here = memory(job, {"stage": 2, "reduce_bucket_size": BUCKET})
    away = {"stage": 2, "reduce_bucket_size": BUCKET, "offload_optimizer": {"device": "cpu"}}
    there = memory(job, away)
    assert there.rest < here.rest
    assert there.host > 12 * SHAPE.parameters // 4
    cut = {**away, "stage": 3, "stage3_param_persistence_threshold": 0}
    assert memory(job, {**cut, "offload_param": {"device": "cpu"}}).rest < there.rest


def stage_3(**settings: Any) -> Memory:
    job = Job(
        Weights((Group((1_000_000,) * 8), Group((1000,)))), values("bf16", 3, 2), 2, 1, NOTHING
    )
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
    job = Job(Weights((Group((10**6,) * 1000), Group((10**5,)))), given, world, 1, NOTHING)
    need = memory(job, given["zero_optimization"] | small)
    assert need.backward / 10**9 == pytest.approx(whole + shared / world, abs=0.01)
    assert need.host / 10**9 == pytest.approx(host / world, abs=0.01)
