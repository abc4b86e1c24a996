"""The planner held against a census of what ranks hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.census import BUCKET, NOTHING, SHAPE, TECHNIQUES, asked_of, most_held, values
from configs.deepspeed_json import read_deepspeed
from engine.activations import Pass
from engine.optimization import Muon
from engine.planner import Group, Job, Memory, Weights, memory
from engine.stage_memory import whole
from tests.warm import WarmWorkers

TAKEN = ("lion 1", "rates 1", "muon 2", "ewc 2", "rates 3", "distillation 3")
"""On two ranks; the benchmark takes all of them, and on one rank, too."""
LEFT_OUT = {f"{name} {stage}" for name in TECHNIQUES for stage in (1, 2, 3)}


@pytest.mark.processes
@pytest.mark.grid
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_hold_what_is_planned(world: int, warm: WarmWorkers, tmp_path: Path) -> None:
    left_out = LEFT_OUT - set(TAKEN if world == 2 else ())
    asked = {name: case for name, case in asked_of(world).items() if name not in left_out}
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


def test_what_an_update_takes_for_a_moment() -> None:
    """One matrix of 10^6 values: its gradient, two directions, and five copies while it turns."""
    turning = Group((10**6,), states=1, working=Muon(lr=1e-3).working("muon"))
    given = values("bf16", 1, 1)
    need = memory(Job(Weights((turning,)), given, 1, 1, NOTHING), given["zero_optimization"])
    measured = 2 * 4 + 16
    assert need.update - need.step == (2 * 4 + max(5 * 2, measured)) * 10**6
    assert need.rest == (2 + 4 + 4) * 10**6
    # On two ranks it is put together first, and a rank updates half of it.
    given = values("bf16", 1, 2)
    need = memory(Job(Weights((turning,)), given, 2, 1, NOTHING), given["zero_optimization"])
    assert need.update - need.step == (4 + max(5 * 2 + 4, measured // 2)) * 10**6


def test_a_validated_average_keeps_a_copy_of_the_weights() -> None:
    for stage in range(4):
        given = values("bf16" if stage else "fp32", stage, 2)
        job = Job(whole(SHAPE), given, 2, 1, Pass(0, 0, 10, 5), averages=1, is_swapped=True)
        need = memory(job, given["zero_optimization"])
        assert need.swapped >= need.rest + 4 * SHAPE.parameters // (2 if stage else 1) + 15
        assert memory(replace(job, is_swapped=False), given["zero_optimization"]).swapped == 0
