"""What comes again and again counts for the time that is left; one standstill does not."""

from engine.pace import Pace, format_seconds


def test_validations_count_and_one_standstill_does_not() -> None:
    pace = Pace()
    assert pace.seconds_left(100) is None
    at = 0.0
    for step in range(101):
        # A second a step, and ten more each tenth.
        at += 11.0 if step % 10 == 0 else 1.0
        pace.see(step, at + (3600.0 if step > 50 else 0.0))
    assert pace.seconds_a_step() == 2.0
    assert pace.seconds_left(200) == 200.0
    assert pace.seconds_left(50) == 0.0


def test_going_back_begins_anew() -> None:
    pace = Pace()
    for step, at in ((10, 0.0), (20, 10.0), (5, 100.0)):
        pace.see(step, at)
    assert pace.seconds_a_step() is None
    pace.see(6, 103.0)
    pace.see(6, 999.0)
    assert pace.seconds_a_step() == 3.0


def test_an_estimate_is_told_as_exactly_as_it_is() -> None:
    told = [format_seconds(seconds) for seconds in (0, 45.4, 720, 12_000, 200_000)]
    assert told == ["0 s", "45 s", "12 min", "3 h 20 min", "2 d 7 h"]
