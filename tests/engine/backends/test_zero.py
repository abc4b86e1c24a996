"""DeepSpeed at every stage on two processes against plain torch on one."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.engine.backends import zero_cases as cases
from tests.engine.backends import zero_worker as worker
from tests.warm import WarmWorkers

pytestmark = [pytest.mark.processes, pytest.mark.grid]
EXACT = {"rtol": 0, "atol": 0}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
BFLOAT16 = {"rtol": 6e-3, "atol": 6e-3}
HALF = {"rtol": 2e-3, "atol": 2e-3}
NAMES = list(worker.CASES)
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(warm: WarmWorkers, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Runs a function of the worker on two ranks, once, and gives its answers."""
    given: dict[str, dict[str, Any]] = {}

    def run(function: str, **arguments: Any) -> dict[str, Any]:
        if function not in given:
            target = tmp_path_factory.mktemp("zero") / "answers.json"
            ended = warm.run(
                f"{worker.__name__}:{function}", {"target": str(target), **arguments}, timeout=500
            )
            logs = "\n".join(rank.text[-3000:] for rank in ended)
            assert [rank.code for rank in ended] == [0, 0], logs
            given[function] = json.loads(target.read_text())
        return given[function]

    return run


@pytest.fixture(scope="module")
def answers(ask: Ask) -> dict[str, Any]:
    return ask("configurations", names=NAMES)


def same(found: Any, expected: Any, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), **tolerance)


def near(found: list[Any], expected: list[Any], tolerance: dict[str, float]) -> None:
    same(found[0], expected[0], tolerance)
    same(found[1], expected[1], tolerance)


def of_precision(*kinds: str) -> list[str]:
    return [name for name in NAMES if name.split()[0] in kinds]


def test_every_configuration_gives_the_plain_curve(answers):
    expected = cases.curve(cases.plain(worker.PULL))
    assert not np.allclose(expected, cases.curve(cases.plain()), **FLOAT32)
    for name in of_precision("fp32"):
        same(answers[name]["curve"], expected, FLOAT32)
    for name in of_precision("bf16", "states"):
        same(answers[name]["curve"], expected, BFLOAT16)
    same(answers["fixed 2"]["curve"], expected, HALF)


@pytest.mark.parametrize("name", NAMES)
def test_fragments_own_every_value_once(answers, name):
    # 42 parameters, each with its weight, two moments and an anchor.
    assert answers[name]["gaps"] == [0, 0, 4 * 42]
    kept = "torch.bfloat16" if name.startswith("states") else "torch.float32"
    assert answers[name]["kinds"] == [kept]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_stage_goes_on_bit_for_bit(answers, name):
    near(answers[name]["resumed"], answers[name]["on"], EXACT)


def test_another_stage_goes_on_within_rounding(answers):
    for before, name in pairwise(NAMES):
        if {before.split()[0], name.split()[0]} == {"fp32"}:
            near(answers[name]["from the one before"], answers[before]["on"], FLOAT32)
        elif not before.startswith(("fp16", "fixed")) and not name.startswith(("fp16", "fixed")):
            near(answers[name]["from the one before"], answers[before]["on"], BFLOAT16)


def test_plain_torch_goes_on_from_every_stage(answers):
    for name in of_precision("fp32"):
        near(answers[name]["alone"], answers[name]["on"], FLOAT32)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_step_leaves_no_trace(answers, name):
    answer = answers[name]
    assert answer["refused"] == [True, True]
    assert answer["no number"] == [True, True]
    assert answer["counted"] == 2
    assert answer["as if never seen"]
    assert answer["taken"]
    assert answer["norms"][0] == answer["norms"][1]
    # What fp16's scaling drops is not for a permit to decide.
    first, *rest = answer["asked"]
    assert 0 < first < 100
    assert len(rest) == (0 if name.startswith(("fp16", "fixed")) else 1)
    assert not np.isfinite(rest).any()


def test_fp16_lowers_its_scale_and_resumes_it(answers):
    for name in of_precision("fp16"):
        extra = answers[name]["extra"]
        assert 0 < extra["skipped_steps"] < cases.SAVED_AT
        assert extra["loss_scale"]["cur_scale"] == 2.0 ** (18 - extra["skipped_steps"])
        assert extra["loss_scale"]["cur_iter"] == cases.SAVED_AT
    assert answers["fixed 2"]["extra"] == {"skipped_steps": 0, "loss_scale": {"cur_scale": 128.0}}


def test_norm_and_clipping_are_the_same_for_every_split(ask):
    found = ask("splits")
    expected = cases.curve(cases.plain(worker.PULL, gradient_clipping=0.1), stop=3)
    assert not np.allclose(expected, cases.curve(cases.plain(worker.PULL), stop=3), **FLOAT32)
    for stage in range(4):
        for micro in (4, 1):
            same(found[f"fp32 {stage} {micro}"], expected, FLOAT32)
    for micro in (4, 1):
        same(found[f"fp16 {micro}"], expected, HALF)
        assert found[f"scale {micro}"] == found["scale 4"]
    assert found["scale 4"]["loss_scale"]["cur_scale"] > 2**10


def test_the_step_at_which_fp16s_scale_grows_is_as_any_other(ask):
    for same_moments, norms, scales in ask("growing").values():
        assert same_moments
        assert norms[0] == norms[1] > 0
        assert scales == [1024, 2048]


def test_a_closed_backend_leaves_nothing_behind(ask):
    found = ask("one_after_another")
    left = [value for key, value in found.items() if key.startswith("left")]
    assert left == [[0, 0]] * 3
    assert found["linear"]
    for key in found:
        if key.startswith("curve"):
            same(found[key], found["after"], FLOAT32)


def test_rotary_frequencies_adapters_and_the_smallest_scale(ask):
    found = ask("kept")
    assert found["rotary 1"] == found["rotary 3"]
    assert set(found["rotary 1"]) == {"torch.float32"}
    assert found["lora names"]
    assert all(".lora_" in name for name in found["lora names"])
    assert found["smallest"].startswith("NumericalError: fp16: the gradient overflows even at")


def test_what_the_device_cannot_do_is_told_and_no_key_is_unknown(ask):
    found = ask("refused")
    assert found["zero1_fp16"].endswith("this cpu does not support fp16")
    assert "needs DeepSpeed's CUDA kernels" in found["zero3_bf16_quantized"]
    assert found["unknown"] == []


def test_every_preset_trains_a_step(ask):
    found = ask("presets")
    known = {path.stem for path in worker.PRESETS.glob("*.json")}
    assert known - set(found) == {"zero3_bf16_quantized", "auto"}
    expected = cases.curve(cases.plain(), stop=1)[0][0]
    same(list(found.values()), [expected] * len(found), BFLOAT16)


def test_long_work_on_one_rank_is_waited_for_and_errors_are_everybodys(ask):
    found = ask("waiting")
    assert found["on first"] == 0
    assert found["together"] == [0, 1]
    first, second = found["told"]
    assert first == ["DataError: no such file", "ZeroDivisionError: by 0", "DataError: shard 1"]
    broken = "LaunchError: rank 0 failed: ZeroDivisionError: by 0"
    assert second == ["DataError: no such file", broken, "DataError: shard 1"]
