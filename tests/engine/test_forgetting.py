"""The noise floor against closed forms and simulation; which action is due when."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from engine.forgetting import (
    Action,
    Eased,
    EasedSchedule,
    NoiseFloor,
    Rungs,
    most_decisive,
    rate,
    student,
)
from engine.optimization import Linear


def test_a_base_seldom_leaves_its_own_floor() -> None:
    """Other draws of masks for the base itself lie within it as often as the sigmas promise."""
    rng = np.random.default_rng(0)
    within, trials = 0, 4000
    for _ in range(trials):
        *draws, another = rng.normal(3.0, 0.1, 9)
        noise = NoiseFloor.of_draws(draws, sigmas=2.0)
        within += abs(another - 3.0) <= noise.floor
    assert within / trials == pytest.approx(0.9545, abs=0.012)


def test_few_draws_make_the_floor_wider() -> None:
    factors = [student(2.0, samples) for samples in (2, 8, 100, 10**6)]
    assert factors == sorted(factors, reverse=True)
    assert factors[1] == pytest.approx(2.43, abs=0.005)
    assert factors[-1] == pytest.approx(2.0, abs=1e-4)


def test_over_rows_it_is_the_error_of_a_ratio() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 20, 400).astype(float)
    sums = counts * rng.normal(3.0, 0.5, 400)
    noise = NoiseFloor.of_rows(sums, counts, sigmas=1.0)
    picks = rng.integers(0, 400, (3000, 400))
    resampled = sums[picks].sum(1) / counts[picks].sum(1)
    assert noise.deviation == pytest.approx(resampled.std(), rel=0.06)
    assert (noise.kind, noise.samples) == ("rows", 400)
    equal = NoiseFloor.of_rows(np.full(5, 2.0), np.ones(5), 1.0)
    assert equal.deviation == 0


@pytest.mark.parametrize(
    ("patience", "curve", "due"),
    [
        (1, [0, 1.0, 1.1, 1.9, 2.2, 0.5, 1.2], [2, 4, 6]),
        (2, [0, 1.1, 1.2, 1.3, 2.5, 0.5, 1.5], [2, 4]),
        (3, [1.1, 1.1, 0.9, 1.1, 1.1], []),
    ],
)
def test_an_action_is_due_when_it_is_new_or_things_are_worse(
    patience: int, curve: list[float], due: list[int]
) -> None:
    rungs = Rungs((1.0,), patience)
    found = []
    for number, multiple in enumerate(curve):
        # As a run that is resumed before each measurement.
        resumed = Rungs((1.0,), patience)
        resumed.load_state_dict(rungs.state_dict())
        answer = rungs.due(multiple)
        assert resumed.due(multiple) == answer
        found += [number] * len(answer)
    assert found == due


def test_each_rung_by_itself() -> None:
    assert Rungs((1.0, 3.0), 1).due(4.0) == [0, 1]
    assert Rungs((1.0, 3.0), 1).due(2.0) == [0]


def test_an_action_that_was_refused_is_due_again() -> None:
    rungs = Rungs((1.0,), 1)
    assert rungs.due(1.5) == [0]
    assert rungs.due(1.6) == []
    rungs.give_back(0)
    assert rungs.due(1.6) == [0]
    assert rungs.due(1.7) == []


def test_to_stop_or_to_go_back_leaves_nothing_else_to_do() -> None:
    kinds = ("warn", "lower_rate", "roll_back", "stop")
    read = TypeAdapter(Action).validate_python
    actions = [read({"do": kind, "floors": 1}) for kind in kinds]
    assert most_decisive(actions) == [actions[3]]
    assert most_decisive(actions[:3]) == [actions[2]]
    assert most_decisive(actions[:2]) == actions[:2]


def test_rates_multiply_from_their_steps_on() -> None:
    eased = [Eased(3, 0.5), Eased(5, 0.1)]
    assert [rate(eased, step) for step in (2, 3, 4, 5)] == pytest.approx([1, 0.5, 0.5, 0.05])
    schedule = EasedSchedule(Linear(), lambda step: rate(eased, step))
    assert schedule.factor(4, 10) == pytest.approx(0.6 * 0.5)
