"""Which rank is slow: named with its host and ratio, warned of when it stays so."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from engine.hooks import Stragglers
from engine.hooks import stragglers as module
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import ThreadRank, on_ranks
from tests.engine.hooks.fakes import FakeBackend, Kept, record

HOSTS = ("a", "a", "b")


class Time:
    """A clock of one rank, which only its own work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(path: Path, seconds: list[list[float]], sinks: list[Any], first: int = 1) -> None:
    """``seconds``: of each step, of each rank: waiting for data half, a pass the other half."""

    def act(ranks: ThreadRank) -> None:
        backend: Any = FakeBackend(ranks)
        hook = Stragglers(path, HOSTS, 2, 9, sinks if ranks.rank() == 0 else [])
        clock = Time()
        hook._clock = module._Clock(clock)
        hook.on_start(backend, Progress(first - 1))
        for step, taken in enumerate(seconds, start=first):
            for before, after in (("data", "reduce"), ("forward", "backward")):
                hook.enter(before, step - 1)
                clock.now += taken[ranks.rank()] / 2
                hook.enter(after, step - 1)
                # Waiting for the others is nobody's own time.
                clock.now += 100
            hook.after_step(backend, Progress(step), record(step))

    assert on_ranks(3, act) == [None, None, None]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_slowest_rank_of_each_window_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "stragglers.jsonl", Kept()
    with caplog.at_level(logging.WARNING):
        drive(path, [[1, 1, 1], [3, 2, 1], [2, 2, 2], [2, 2, 2.4]], [kept])
    assert lines(path) == [
        {
            "step": 2,
            "slowest": {"rank": 0, "host": "a", "ratio": pytest.approx(2 / 1.5)},
            "seconds": {"median": 1.5, "slowest": 2.0},
        },
        {
            "step": 4,
            "slowest": {"rank": 2, "host": "b", "ratio": pytest.approx(1.1)},
            "seconds": {"median": 2.0, "slowest": pytest.approx(2.2)},
        },
    ]
    assert [numbers["slowest"]["rank"] for _, _, numbers in kept.written] == [0, 2]
    assert "host" not in kept.written[0][2]["slowest"]
    assert not caplog.records
    drive(path, [[1, 1, 1]] * 2, [], first=3)
    assert [line["step"] for line in lines(path)] == [2, 4]


def test_a_rank_that_stays_slow_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stragglers.jsonl"
    slow, even = [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]
    with caplog.at_level(logging.WARNING):
        drive(path, [slow, slow, slow, slow, even, even, slow, slow], [])
        assert not caplog.records
        drive(path, [slow] * 8, [])
    (warning,) = caplog.records
    assert "step 6: rank 1 on a takes 5.0 times as long as the median rank" in warning.message
