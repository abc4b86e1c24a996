"""Every schedule: what all of them promise, and each at known points."""

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from configs.errors import RecipeError
from engine.optimization import (
    Constant,
    Cosine,
    Infinite,
    Linear,
    ScheduleConfig,
    Triangular,
    WarmupStableDecay,
)

READ = TypeAdapter(ScheduleConfig).validate_python
WARMED = (
    Linear,
    Cosine,
    Constant,
    lambda **given: WarmupStableDecay(decay=0.1, **given),
    lambda **given: Infinite(cooldown=0.05, anneal=0.05, **given),
)


@given(
    kind=st.sampled_from(WARMED),
    steps=st.integers(1, 300),
    warmup=st.floats(0.001, 0.85),
    begin=st.floats(0, 0.9),
)
def test_a_schedule_rises_once_and_falls_once(kind, steps, warmup, begin):
    schedule = kind(warmup=warmup, begin=begin)
    rates = [schedule.factor(step, steps) for step in range(steps)]
    rising = schedule.warmup_steps(steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert rising == 0 or rates[rising - 1] == 1
    assert rising == 0 or rates[0] > begin


@given(steps=st.integers(1, 500), rise=st.floats(0.01, 0.9), ratio=st.floats(1.5, 100))
def test_triangular_rises_and_falls_between_its_bounds(steps, rise, ratio):
    schedule = Triangular(rise=rise, ratio=ratio)
    rates = [schedule.factor(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(1 / ratio - 1e-9 <= rate <= 1 + 1e-9 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_known_points():
    linear = Linear(warmup=2, end=0.2)
    assert [linear.factor(s, 6) for s in range(6)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4])
    assert Cosine().factor(5, 10) == pytest.approx(0.5)
    assert Constant(warmup=0.5).factor(0, 4) == 0.5
    ulmfit = Triangular()
    assert ulmfit.factor(0, 100) == pytest.approx(1 / 32)
    assert ulmfit.factor(10, 100) == 1
    assert ulmfit.factor(55, 100) == pytest.approx((1 + 0.5 * 31) / 32)
    stable = WarmupStableDecay(warmup=2, decay=4, end=0.2)
    found = [stable.factor(s, 10) for s in range(10)]
    fall = [1 - 0.8 * sqrt(share) for share in (0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, *fall])
    straight = WarmupStableDecay(decay=0.5, shape="linear")
    assert [straight.factor(s, 4) for s in range(4)] == [1, 1, 1, 0.5]


def test_an_infinite_schedule_holds_its_rate_and_the_next_run_rewarms_from_it():
    first = Infinite(warmup=10, cooldown=20, constant=0.4)
    assert first.factor(10, 100) == 1
    assert first.factor(20, 100) == pytest.approx(0.7)
    # However long the run is to be, the constant part is the same.
    assert {first.factor(step, steps) for step, steps in ((30, 100), (99, 100), (800, 900))} == {
        0.4
    }
    second = Infinite(warmup=10, begin=0.4, cooldown=20, constant=0.4, anneal=0.5, end=0.1)
    assert second.factor(0, 100) == pytest.approx(0.4 + 0.06)
    assert second.factor(9, 100) == 1
    assert second.factor(50, 100) == pytest.approx(0.4)
    assert second.factor(75, 100) == pytest.approx(0.2)


def test_phases_are_shares_or_numbers_of_steps_and_must_fit():
    assert READ({"name": "linear", "warmup": 0.1}).warmup_steps(50) == 5
    assert READ({"name": "linear", "warmup": 7}).warmup_steps(50) == 7
    for wrong, said in (
        ({"name": "linear", "warmup": 1.5}, "neither a share below 1"),
        ({"name": "wsd", "decay": 2.5}, "neither a share below 1"),
        ({"name": "cosine", "begin": 0.5}, "no warmup that could rise"),
        ({"name": "infinite", "end": 0.1}, "'anneal' is absent"),
        ({"name": "infinite", "anneal": 0.1, "constant": 0.1, "end": 0.2}, "annealing falls"),
    ):
        with pytest.raises(ValidationError, match=said):
            READ(wrong)
    with pytest.raises(RecipeError, match="warmup of 7 steps in a run of 5"):
        Linear(warmup=7).factor(0, 5)
    with pytest.raises(RecipeError, match="decay of 5 steps after a warmup of 6 in a run of 10"):
        WarmupStableDecay(warmup=6, decay=5).factor(7, 10)
