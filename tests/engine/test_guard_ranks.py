"""The guard and averages on two ranks at every kind of stage: one start of warm workers for all."""

import json
from typing import Any

import pytest

from tests.engine import guard_worker as worker
from tests.warm import WarmWorkers

pytestmark = [pytest.mark.processes, pytest.mark.grid]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, warm: WarmWorkers) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("guard")
    ended = warm.run("tests.engine.guard_worker:main", {"folder": str(folder)}, timeout=400)
    assert [each.code for each in ended] == [0, 0], "".join(e.log.read_text() for e in ended)
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return found


@pytest.mark.parametrize("kind", worker.KINDS)
def test_what_is_out_of_bounds_anywhere_is_skipped_everywhere(
    answers: dict[str, Any], kind: tuple[int, str]
) -> None:
    found = answers[f"skip {kind}"]
    assert found["skipped"] == list(worker.BAD)
    assert found["equals the control"]
    assert found["finite"]
    assert len(found["ranks"]) == 2
    assert len(set(found["ranks"])) == 1
    assert found["counted"] == [len(worker.BAD)] * 2
    assert [line["why"].partition(" is ")[0] for line in found["lines"]] == [
        "the loss",
        "the loss",
        f"the loss {found['lines'][2]['loss']:.5g}",
        "the gradient",
    ]
    rows = [[row["index"] for row in line["rows"]] for line in found["lines"]]
    assert rows == [list(range(step * 8, step * 8 + 8)) for step in worker.BAD]


@pytest.mark.parametrize("kind", worker.KINDS)
def test_the_average_is_that_of_the_whole_weights_after_taken_steps(
    answers: dict[str, Any], kind: tuple[int, str]
) -> None:
    assert answers[f"skip {kind}"]["gap of the average"] < 1e-6


@pytest.mark.parametrize("kind", worker.KINDS)
def test_a_resumed_run_goes_on_bit_for_bit_also_where_no_step_was_taken(
    answers: dict[str, Any], kind: tuple[int, str]
) -> None:
    found = answers[f"resume {kind}"]
    assert found["again"] == {"none taken": True, "some taken": True}
    assert found["keys"] == [["fp32"], ["ema", "exp_avg", "exp_avg_sq", "fp32"]]


def test_the_average_goes_on_at_other_stages_and_on_one_process(answers: dict[str, Any]) -> None:
    assert len(answers["reshard"]) == 3
    assert max(answers["reshard"]) < 2e-4
