"""A launch of which one rank has failed is given some time, and then it is over."""

import json
import time
from pathlib import Path

import pytest

from launcher.stragglers import Stragglers


def leave_word(folder: Path, rank: int, state: str) -> None:
    told = {"rank": rank, "host": "node", "pid": 1, "state": state}
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))


@pytest.mark.parametrize("state", ["error", "stopped"])
def test_others_are_left_some_time_after_one_failed(tmp_path, monkeypatch, state):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Stragglers(tmp_path, seconds=5)
    assert not watch.are_left()
    leave_word(tmp_path, 0, "running")
    leave_word(tmp_path, 1, "done")
    now[0] += 100
    assert not watch.are_left()
    leave_word(tmp_path, 2, state)
    now[0] += 2
    assert not watch.are_left()
    now[0] += 4
    assert not watch.are_left()
    now[0] += 2
    assert watch.are_left()


def test_what_cannot_be_read_says_nothing(tmp_path):
    (tmp_path / "rank-0.json").write_text("half of a")
    assert not Stragglers(tmp_path, seconds=0).are_left()
