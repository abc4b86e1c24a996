"""Ranks end when nobody waits for them, and only then."""

import json
from pathlib import Path

import pytest

from configs.errors import RecipeError
from launcher import heartbeat
from launcher.heartbeat import ALIVE, OVER, Pulse, end_launch, heard, silence_seconds
from launcher.outcome import Reporter, read_outcomes


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: time[0])
    return time


def beat(folder: Path, count: int, launch: str = "own", silence: float = 10.0) -> None:
    told = {"launch": launch, "silence": silence, "count": count}
    (folder / ALIVE).write_text(json.dumps(told))


def looks(pulse: Pulse, now: list[float], seconds: int) -> str:
    for _ in range(seconds):
        now[0] += 1.0
        found = pulse.look()
    return found


def test_a_count_that_stands_still_is_silence_and_one_that_comes_late_is_none(
    tmp_path: Path, now: list[float]
) -> None:
    pulse = Pulse(tmp_path, "own")
    # Not there yet, then seen late again and again.
    assert looks(pulse, now, 30) == "alive"
    for count in (0, 1, 5, 6):
        beat(tmp_path, count)
        assert looks(pulse, now, 10) == "alive"
    assert looks(pulse, now, 1) == "silent"
    # A file that cannot be read for a while, and a process that was suspended for an hour.
    beat(tmp_path, 7)
    assert looks(pulse, now, 1) == "alive"
    (tmp_path / ALIVE).write_text("")
    now[0] += 3600.0
    assert pulse.look() == "alive"
    assert looks(pulse, now, 9) == "silent"


def test_a_folder_that_is_never_seen_is_silence(tmp_path: Path, now: list[float]) -> None:
    assert looks(Pulse(tmp_path / "elsewhere", "own"), now, 59) == "alive"
    pulse = Pulse(tmp_path / "elsewhere", "own")
    assert looks(pulse, now, 61) == "silent"


def test_a_later_launch_ends_the_ranks_of_an_earlier_one(tmp_path: Path, now: list[float]) -> None:
    beat(tmp_path, 0)
    pulse = Pulse(tmp_path, "own")
    assert looks(pulse, now, 1) == "alive"
    beat(tmp_path, 0, "other")
    assert looks(pulse, now, 1) == "other"


def test_a_rank_of_an_earlier_launch_leaves_no_word_in_a_later_ones_folder(tmp_path: Path) -> None:
    beat(tmp_path, 1, "own")
    pulse = Pulse(tmp_path, "own")
    reporter = Reporter(tmp_path, 0, pulse.is_own)
    reporter.enters("dapt")
    before = (tmp_path / "rank-0.json").read_text()
    beat(tmp_path, 1, "later")
    assert not pulse.is_own()
    reporter.failed(KeyError("x"))
    assert (tmp_path / "rank-0.json").read_text() == before
    assert not (tmp_path / "rank-0-traceback.txt").exists()
    beat(tmp_path, 2, "own")
    reporter.failed(KeyError("x"))
    assert read_outcomes(tmp_path)[0].kind == "KeyError"


def test_who_comes_late_tells_an_earlier_launch_from_a_later_one(
    tmp_path: Path, now: list[float]
) -> None:
    beat(tmp_path, 3, "other")
    pulse, late = Pulse(tmp_path, "own"), Pulse(tmp_path, "old")
    # The file system still shows what was there before ...
    assert looks(pulse, now, 5) == "waiting"
    beat(tmp_path, 0)
    assert looks(pulse, now, 1) == "alive"
    # ... or another launch counts on.
    assert looks(late, now, 1) == "waiting"
    beat(tmp_path, 1)
    assert looks(late, now, 1) == "other"


def test_a_launch_that_is_over_is_known_by_its_own_name(tmp_path: Path, now: list[float]) -> None:
    folder, earlier = tmp_path / "dapt/launch", tmp_path / "base/launch"
    for each in (folder, earlier):
        each.mkdir(parents=True)
    beat(earlier, 3, "old")
    old = Pulse(earlier, "old")
    assert looks(old, now, 1) == "alive"
    with heard(tmp_path, folder, "own", 10.0):
        assert looks(old, now, 1) == "over"
        pulse = Pulse(folder, "own")
        assert looks(pulse, now, 1) == "alive"
        # What an earlier launch has left, as a file system may still show it.
        (folder / OVER).write_text("old")
        assert looks(pulse, now, 1) == "alive"
    assert looks(pulse, now, 1) == "over"


def test_it_counts_in_place(tmp_path: Path) -> None:
    with heard(tmp_path, tmp_path, "own", 1.0):
        path = tmp_path / ALIVE
        first, file = path.read_text(), path.stat().st_ino
        while path.read_text() == first:
            assert path.stat().st_size == len(first)
        assert path.stat().st_ino == file
        assert json.loads(path.read_text())["launch"] == "own"
    assert (tmp_path / OVER).read_text() == "own"
    # Nobody is told where there is nothing to be told of.
    end_launch(tmp_path / "elsewhere")


@pytest.mark.parametrize("given", ["nan", "0", "inf", "soon"])
def test_a_silence_that_is_none_is_refused(given: str) -> None:
    assert silence_seconds({}) == 60.0
    assert silence_seconds({"ONWARD_LAUNCHER_SILENCE": "90"}) == 90.0
    with pytest.raises(RecipeError, match="ONWARD_LAUNCHER_SILENCE"):
        silence_seconds({"ONWARD_LAUNCHER_SILENCE": given})
