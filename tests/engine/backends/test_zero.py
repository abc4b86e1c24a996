"""DeepSpeed at every stage on two processes against plain torch on one: one launch for all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import tiny
from tests.engine.backends import zero_worker as worker

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[3]
EXACT = {"rtol": 0, "atol": 0}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
BFLOAT16 = {"rtol": 3e-3, "atol": 3e-3}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, operators: dict[str, str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("zero")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        **operators,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "2",
    }
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    command = [sys.executable, worker.__file__, str(folder / "answers.json")]
    started = []
    for rank, log in enumerate(logs):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as out:
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    try:
        codes = [process.wait(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    report = "\n".join(log.read_text()[-3000:] for log in logs)
    assert codes == [0, 0], report
    values: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return values


def curve(pull: float = 0.0, **more: Any) -> list[list[float]]:
    return worker.curve(worker.plain(pull, **more))


def same(found: Any, expected: Any, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), **tolerance)


def test_every_stage_gives_the_plain_curve_in_fp32(answers):
    for stage in range(4):
        same(answers[f"fp32 {stage}"], curve(), FLOAT32)


def test_the_pull_to_the_start_is_the_same_at_every_stage(answers):
    pulled = curve(1.0)
    assert not np.allclose(pulled, curve(), **FLOAT32)
    for stage in range(4):
        same(answers[f"fp32 {stage} pull"], pulled, FLOAT32)


def test_bf16_stays_near_fp32(answers):
    for stage in (1, 2, 3):
        same(answers[f"bf16 {stage}"], curve(), BFLOAT16)


def test_accumulation_changes_nothing(answers):
    for micro in (2, 1):
        same(answers[f"micro {micro}"], answers["fp32 2"], FLOAT32)


def test_clipping_is_the_same_at_every_stage(answers):
    clipped = curve(1.0, gradient_clipping=0.1)
    assert not np.allclose(clipped, curve(1.0), **FLOAT32)
    for stage in (0, 1, 3):
        same(answers[f"clipped {stage}"], clipped, FLOAT32)


def test_fragments_own_every_value_once(answers):
    # 42 parameters, each with its weight, two moments and an anchor.
    gaps = {key: value for key, value in answers.items() if key.startswith("gaps ")}
    assert len(gaps) == 6
    assert all(value == [0, 0, 4 * 42] for value in gaps.values())


def split(answer: Any) -> tuple[float, Any]:
    held_out, after = answer
    return held_out, after


@pytest.mark.parametrize("source", ["fp32 0", "fp32 1", "fp32 2", "fp32 3", "bf16 2", "bf16 3"])
def test_the_same_stage_goes_on_bit_for_bit(answers, source):
    stage = source[-1]
    for target in (f"{source} to {stage}", f"{source} again"):
        for found, expected in zip(answers[target], answers[f"on {source}"], strict=True):
            same(found, expected, EXACT)


def test_another_stage_goes_on_within_rounding(answers):
    moves = [key for key in answers if " to " in key and not key.startswith("fp16")]
    assert len(moves) == 20
    for move in moves:
        source = move.partition(" to ")[0]
        tolerance = FLOAT32 if source.startswith("fp32") else BFLOAT16
        found, expected = split(answers[move]), split(answers[f"on {source}"])
        same(found[0], expected[0], {"rtol": 1e-6, "atol": 0})
        same(found[1], expected[1], tolerance)


def test_fp16_resumes_with_its_loss_scale(answers):
    if "fp16 refused" in answers:
        pytest.skip(answers["fp16 refused"])
    assert answers["fp16 extra"]["skipped_steps"] > 0
    same(answers["fp16 to 1"], answers["on fp16"], EXACT)


def test_stage_3_gives_the_plain_curve_for_every_architecture(answers):
    for shape in tiny.SHAPES[1:]:
        same(answers[shape], worker.curve(worker.plain(shape=shape), stop=3), FLOAT32)


def test_rotary_frequencies_stay_in_fp32(answers):
    assert answers["rotary 1"] == answers["rotary 3"]
    assert set(answers["rotary 1"]) == {"torch.float32"}


def test_lora_trains_and_saves_its_updates_alone(answers):
    assert answers["lora names"]
    assert all(".lora_" in name for name in answers["lora names"])
    assert answers["lora"] != answers["fp32 3"]


def test_long_work_on_one_rank_is_waited_for_and_errors_are_everybodys(answers):
    assert answers["on first"] == 0
    assert answers["together"] == [0, 1]
    first, second = answers["told"]
    assert first == ["DataError: no such file", "ZeroDivisionError: by 0", "DataError: shard 1"]
    broken = "LaunchError: rank 0 failed: ZeroDivisionError: by 0"
    assert second == ["DataError: no such file", broken, "DataError: shard 1"]
