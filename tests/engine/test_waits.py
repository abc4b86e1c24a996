"""Between two logged steps nothing of ours reads from the device."""

import json
from pathlib import Path

import pytest
import torch

from tests.engine import tiny, waits
from tests.warm import WarmWorkers


@pytest.mark.parametrize("shape", ["bert_tiny", "modernbert_tiny", "llama_tiny"])
def test_a_step_by_plain_torch_waits_for_nothing(shape: str) -> None:
    assert waits.waits_of(waits.plain(shape)).found == []


def test_the_logged_step_does() -> None:
    """Or nothing could be found above."""
    found = waits.waits_of(waits.plain("bert_tiny"), last=7)
    assert {Path(where).name.partition(":")[0] for _, where in found.ours} == {
        "metrics.py",
        "vitals.py",
    }


@pytest.mark.parametrize(
    ("read", "operator"),
    [
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
    ],
)
def test_what_waits_is_found(read: object, operator: str) -> None:
    tiny.seeded()
    with waits.Waits() as seen:
        read(torch.rand(3))  # type: ignore[operator]
    assert [name for name, _ in seen.found] == [operator]


@pytest.mark.processes
def test_a_step_by_deepspeed_waits_for_nothing_of_ours(warm: WarmWorkers, tmp_path: Path) -> None:
    answer = tmp_path / "waits.json"
    given = {"answer": str(answer), "stages": [1, 3]}
    (ended,) = warm.run("tests.engine.waits:deepspeed", given, world=1)
    assert ended.code == 0, ended.log.read_text()
    found = json.loads(answer.read_text())
    assert {stage: each["ours"] for stage, each in found.items()} == {"1": [], "3": []}
