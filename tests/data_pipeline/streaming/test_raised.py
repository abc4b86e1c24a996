"""More of one source, decided in mid-run: as a change of the weights would have it."""

import pytest

from configs.errors import RecipeError
from data_pipeline.streaming.schedule import Raised, Schedule, Turn

WEIGHTS = {"domain": 3.0, "general": 1.0}
LATER = {"domain": 1.0, "general": 1.0}


def test_it_is_a_change_from_the_next_block_on() -> None:
    schedule = Schedule.of(WEIGHTS, block=10)
    raised = schedule.raised(Raised(11, "general", 2.0))
    assert raised == schedule.changed(11, WEIGHTS | {"general": 2.0})
    assert raised.turns[1].first_block == 2
    assert schedule.raised(Raised(20, "general", 2.0)) == raised


def test_what_was_to_change_later_changes_and_stays_raised() -> None:
    schedule = Schedule.of(WEIGHTS, block=10).changed(50, LATER)
    raised = schedule.raised(Raised(20, "general", 3.0))
    assert raised.turns == (
        schedule.turns[0],
        Turn(2, {"domain": 3.0, "general": 3.0}),
        Turn(5, {"domain": 1.0, "general": 3.0}),
    )
    assert schedule.raised(Raised(41, "general", 3.0)).turns == (
        schedule.turns[0],
        Turn(5, {"domain": 1.0, "general": 3.0}),
    )


def test_it_may_be_raised_again() -> None:
    schedule = Schedule.of(WEIGHTS, block=10)
    for after in (15, 25):
        schedule = schedule.raised(Raised(after, "general", 2.0))
    assert [turn.weights["general"] for turn in schedule.turns] == [1.0, 2.0, 4.0]


def test_nothing_cannot_be_raised_nor_another_source_pushed_out() -> None:
    with pytest.raises(RecipeError, match="source 'general' has weight 0 from row 20 on"):
        Schedule.of(WEIGHTS | {"general": 0.0}, 10).raised(Raised(15, "general", 2.0))
    with pytest.raises(RecipeError, match="'domain' has weight 3"):
        Schedule.of(WEIGHTS, 10).raised(Raised(15, "general", 1000.0))
