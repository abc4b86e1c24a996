"""Bounds: the median of the last taken steps, and what is above it."""

import json
from math import inf, isfinite, nan
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.averaging import MovingAverage
from engine.guarding import Bounds, GuardConfig, Median
from tests.engine import guard_worker as worker

numbers = st.floats(0.01, 1e6)


@given(st.lists(numbers, max_size=30), st.integers(1, 8), st.floats(1.1, 10))
def test_the_median_is_of_the_last_values_and_there_must_be_enough(
    values: list[float], size: int, ratio: float
) -> None:
    kept = Median(size)
    for value in values:
        kept.add(value)
    expected = ratio * median(values[-size:]) if len(values) >= size else None
    assert kept.times(ratio) == expected
    assert kept.times(None) is None


@given(
    st.lists(st.tuples(numbers | st.sampled_from([nan, inf]), numbers), max_size=40),
    st.integers(1, 6),
    st.integers(0, 40),
)
def test_only_taken_steps_count_and_a_state_goes_on_where_it_was_left(
    steps: list[tuple[float, float]], window: int, cut: int
) -> None:
    """Against the rule written out: skipped values never enter the window."""
    config = GuardConfig(spike=2.0, norm_spike=3.0, window=window)
    bounds, taken = Bounds(config), []
    for number, (loss, norm) in enumerate(steps):
        if number == cut:
            state = json.loads(json.dumps(bounds.state_dict()))
            bounds = Bounds(config)
            bounds.load_state_dict(state)
        found = bounds.check(number, loss, norm)
        recent = taken[-window:]
        full = len(recent) == window
        is_high = full and (
            loss > 2 * median(each[0] for each in recent)
            or norm > 3 * median(each[1] for each in recent)
        )
        assert (found is not None) == (not isfinite(loss) or is_high)
        if found is None:
            bounds.take_in(loss, norm)
            taken.append((loss, norm))
        else:
            json.dumps(found.loss, allow_nan=False)
            assert found.step == number


def test_what_is_wrong_is_told() -> None:
    bounds = Bounds(GuardConfig(spike=2.0, norm_spike=2.0, window=2))
    for loss, norm in ((4.0, 1.0), (6.0, 3.0)):
        bounds.take_in(loss, norm)
    told = [
        bounds.check(7, loss, norm)
        for loss, norm in ((nan, 1.0), (5.0, inf), (10.5, 1.0), (5.0, 4.5), (10.0, 4.0))
    ]
    assert [each and each.why for each in told] == [
        "the loss is nan",
        "the gradient is not finite",
        "the loss 10.5 is more than 10",
        "the gradient norm 4.5 is more than 4",
        None,
    ]
    assert [each and (each.loss, each.norm, each.threshold) for each in told[:4]] == [
        (None, 1.0, None),
        (5.0, None, None),
        (10.5, 1.0, 10.0),
        (5.0, 4.5, 4.0),
    ]


def test_without_ratios_only_what_is_not_finite_is_out_of_bounds() -> None:
    bounds = Bounds(GuardConfig(window=1))
    bounds.take_in(1.0, 1.0)
    assert bounds.check(1, 1e30, 1e30) is None
    assert bounds.check(1, 1.0, None) is None
    assert bounds.check(1, 1.0, nan) is not None


@pytest.mark.parametrize("wrong", [{"spike": 1.0}, {"spike": inf}, {"window": 0}, {"patience": 0}])
def test_bounds_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GuardConfig.model_validate(wrong)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plain_torch_skips_and_averages(tmp_path: Path, precision: str) -> None:
    """As on several ranks, which have a test of their own."""
    backend = worker.backend_of(precision, MovingAverage(decay=worker.DECAY).build(1))
    initial = worker.save(backend)
    assert all(worker.resume(backend, initial)["again"].values())
    worker.load_into(backend, initial, 0)
    found = worker.skip(backend, tmp_path / "skipped.jsonl")
    assert found["skipped"] == list(worker.BAD)
    assert found["equals the control"]
    assert found["finite"]
    assert found["gap of the average"] < 1e-6
