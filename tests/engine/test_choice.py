"""Which step is the best one, and when more steps are not worth it."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine.choice import ChooseConfig, Contest, verdict


def contest(values: list[float], **changes: Any) -> Contest:
    made = Contest(ChooseConfig(**({"by": "validation/kept/loss"} | changes)))
    for step, value in enumerate(values):
        made.take_in(step, value)
    return made


@pytest.mark.parametrize(
    ("by", "values", "best"),
    [
        ("validation/kept/loss", [1, 5, 3, 4, 3], 2),
        ("validation/kept/accuracy", [9, 5, 3, 7, 7], 3),
        ("probe/task/macro_f1", [0, 0.2, 0.1], 1),
    ],
)
def test_the_first_of_the_best_trained_steps(by: str, values: list[float], best: int) -> None:
    found = contest(values, by=by)
    assert found.best() == found.values[best - 1]
    assert found.before == values[0]
    assert found.best(1) == found.values[0]


def test_a_small_change_is_none() -> None:
    assert contest([9, 5, 4.95, 4.91], least_change=0.1).best().step == 1  # type: ignore[union-attr]
    assert contest([9, 5, 4.95, 4.89], least_change=0.1).best().step == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "ends"),
    [([9, 5, 6], False), ([9, 5, 6, 7], True), ([9, 5, 6, 4, 7], False), ([1, 2, 3], False)],
)
def test_patience_counts_measurements_since_the_best(values: list[float], ends: bool) -> None:
    assert bool(contest(values, patience=2).given_up()) is ends
    assert not contest(values).given_up()


def test_its_state_goes_on_where_it_was() -> None:
    whole, cut = contest([9, 5, 6, 4, 7]), contest([9, 5, 6])
    resumed = Contest(cut.config)
    resumed.load_state_dict(cut.state_dict())
    resumed.take_in(3, 4)
    resumed.take_in(4, 7)
    assert resumed == whole
    resumed.load_state_dict({})
    assert resumed == Contest(cut.config)


def test_a_verdict_without_a_choice_is_the_last_step() -> None:
    assert verdict(None, 7, "enough") == {"step": 7, "last_step": 7, "ended_early": "enough"}
    assert verdict(contest([3, 2, 1]), 5, "")["step"] == 2


def test_what_is_better_must_be_clear() -> None:
    with pytest.raises(ValidationError, match="give better: lower or better: higher"):
        ChooseConfig(by="validation/kept/entropy")
    assert ChooseConfig(by="validation/kept/entropy", better="higher").direction == "higher"
