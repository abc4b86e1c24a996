"""Every adaptation at every ZeRO stage on two processes, against plain torch on one."""

import json

import numpy as np
import pytest

from tests.engine.adaptation import zero_worker as worker

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),  # peft, of GPT-2's Conv1D
]
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
BFLOAT16 = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(scope="module")
def answers(warm, tmp_path_factory):
    target = tmp_path_factory.mktemp("zero") / "answers.json"
    asked = {"target": str(target)}
    ended = warm.run(f"{worker.__name__}:every_stage", asked, timeout=300)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.text[-3000:] for rank in ended)
    return json.loads(target.read_text())


@pytest.mark.parametrize("kind", worker.SHAPES)
def test_every_stage_trains_it_as_plain_torch_does(answers, kind):
    plain = worker.plain(kind)
    expected = worker.curve(plain, kind)
    names = sorted({fragment.name for fragment in plain.fragments()})
    for stage in (1, 2, 3):
        found = answers[f"{kind} {stage}"]
        np.testing.assert_allclose(found["curve"], expected, **FLOAT32)
        np.testing.assert_allclose(found["alone"], expected[worker.SAVED_AT :], **FLOAT32)
        # What is frozen is in no checkpoint.
        assert found["names"] == names
        assert found["gaps"] == [0, 0]
        assert found["again"] == found["on"]
        assert found["same"]
    if kind in worker.HALF:
        np.testing.assert_allclose(answers[f"{kind} bf16"]["curve"], expected, **BFLOAT16)
