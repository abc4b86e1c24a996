"""The planner's collectives, by hand and against the calls of a real step."""

import json
from pathlib import Path

import pytest

from benchmarks import counted
from engine.activations import Pass
from engine.communication import Collective, communication, total_bytes
from engine.planner import Group, Job, Weights, Working
from tests.warm import WarmWorkers

NOTHING = Pass(0, 0, 0, 0)
FOUR = Weights((Group((100, 40)), Group((7, 3))))


def told(weights: Weights, zero: dict[str, object], world: int = 2, **values: object) -> list[str]:
    accumulation = int(str(values.pop("accumulation", 1)))
    job = Job(weights, values, world, accumulation, NOTHING, sources=3)
    return [f"{c.purpose} {c.kind} {c.calls} {c.bytes}" for c in communication(job, zero)]


LOOP = ["counts all_reduce 1 64", "vote all_reduce 1 8"]


@pytest.mark.parametrize(
    ("zero", "values", "expected"),
    [
        ({}, {}, ["gradients all_reduce 1 600", "norm all_reduce 1 4"]),
        ({}, {"gradient_clipping": 0}, ["gradients all_reduce 1 600"]),
        (
            {"stage": 1},
            {},
            ["gradients all_reduce 1 600", "norm all_reduce 2 8", "weights all_gather 2 608"],
        ),
        (
            {"stage": 2},
            {"bf16": {"enabled": True}, "accumulation": 3},
            [
                "gradients all_reduce 3 900",
                "norm all_reduce 2 8",
                "overflow all_reduce 1 1",
                "weights all_gather 2 304",
            ],
        ),
        (
            {"stage": 1},
            {"bf16": {"enabled": True}, "communication_data_type": "fp32"},
            [
                "gradients all_reduce 1 600",
                "norm all_reduce 2 8",
                "overflow all_reduce 1 1",
                "weights all_gather 2 304",
            ],
        ),
        (
            {"stage": 3, "sub_group_size": 40},
            {},
            # (100 + 40 + 8 + 4) * 4: each tensor is padded to the ranks; all of them persist.
            [
                "gradients reduce_scatter 1 608",
                "norm all_reduce 3 24",
                "weights all_gather 4 608",
            ],
        ),
    ],
)
def test_by_hand(zero: dict[str, object], values: dict[str, object], expected: list[str]) -> None:
    assert told(FOUR, zero, **values) == sorted([*LOOP, *expected])


def test_a_tensor_larger_than_the_bucket_goes_out_as_its_owners_have_it() -> None:
    """Of 100 values rank 0 owns 70 (of 140 in two halves), rank 1 the other 30 and the 40."""
    zero = {"stage": 1, "reduce_bucket_size": 60}
    assert "gradients all_reduce 3 600" in told(FOUR, zero)
    assert "gradients reduce 4 600" in told(FOUR, zero | {"use_multi_rank_bucket_allreduce": False})


def test_stage_3_gathers_for_each_pass_what_does_not_persist() -> None:
    zero = {"stage": 3, "stage3_param_persistence_threshold": 10, "stage3_max_reuse_distance": 0}
    # Fetched ahead, the second tensor's use in the backward pass is passed by, so that both stay.
    assert "weights all_gather 4 608" in told(FOUR, zero)
    # Each once more for the backward pass.
    assert "weights all_gather 6 1168" in told(FOUR, zero | {"stage3_prefetch_bucket_size": 0})


def test_a_guard_asks_once_more() -> None:
    job = Job(FOUR, {}, 2, 1, NOTHING, is_judged=True)
    assert Collective("all_reduce", 16, 1, "judgement") in communication(job, {})


def test_one_rank_asks_for_nothing() -> None:
    assert told(FOUR, {"stage": 3}, world=1) == []


def test_bytes_are_added_up() -> None:
    job = Job(FOUR, {}, 2, 1, NOTHING)
    found = communication(job, {})
    assert total_bytes(found) == 600 + 4 + 4 * 8 + 8
    assert Collective("all_reduce", 600, 1, "gradients") in found


@pytest.mark.grid
@pytest.mark.processes
def test_a_step_asks_for_what_is_planned(warm: WarmWorkers, tmp_path: Path) -> None:
    names = (
        "stage 0, fp32, accumulation 2",
        "stage 1, small buckets",
        "stage 1, rank by rank",
        "stage 2, overlapped",
        "stage 3, fp32, accumulation 2",
        "stage 3, bert, weights released",
        "stage 3, mixtral, weights released",
        "stage 1, muon",
        "stage 2, layer decay",
        "stage 3, muon, small groups",
        "stage 3, bert, teacher, weights released",
    )
    asked = {name: case for name, case in counted.cases().items() if name in names}
    assert len(asked) == len(names)
    arguments = {"folder": str(tmp_path), "cases": asked}
    ended = warm.run("benchmarks.collectives:count", arguments, counted.WORLD)
    assert [end.code for end in ended] == [0, 0], ended[0].text
    for rank in range(counted.WORLD):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_bytes())
        for name, given in asked.items():
            calls = {kind: tuple(numbers) for kind, numbers in found[name].items()}
            assert calls == counted.planned(given), name


def test_matrices_that_are_cut_are_put_together_in_batches() -> None:
    turned = Group((100, 40), 1, Working(2, 10))
    weights = Weights((turned, Group((7, 3))))
    # Of 140 values rank 0 owns 70: the first matrix is cut, the second is not.
    assert "matrices all_reduce 1 400" in told(weights, {"stage": 1})
    assert "matrices all_reduce 1 560" in told(weights, {"stage": 3})
    assert "matrices all_reduce 2 560" in told(weights, {"stage": 3, "sub_group_size": 20})
    large = Weights((Group((1 << 24, 1 << 23, 1 << 23, 40), 1, Working(2, 10)),))
    assert f"matrices all_reduce 3 {4 * (2**25 + 40)}" in told(large, {"stage": 3})
    assert not any("matrices" in line for line in told(weights, {}))
