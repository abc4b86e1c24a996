"""A training stage's metrics are told while it runs, also across stages and a resume."""

import json
from pathlib import Path

from launcher.progress import Follower, format_metrics


def add(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 2.0, "tokens_per_second": 1234.0}) + "\n")


def test_new_lines_are_told_and_old_ones_are_not(tmp_path: Path) -> None:
    first, second = tmp_path / "base", tmp_path / "dapt"
    now, told = [first], list[str]()
    follower = Follower(lambda: now[0], told.append)
    follower.look()
    add(first, 10)
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    follower.look()
    follower.say()
    follower.say()
    assert told == ["base: step 10  loss 2.0000  1,234 tokens/s"]
    (first / "metrics.jsonl").write_text("")
    follower.look()
    add(first, 5, 6)
    follower.look()
    now[0] = second
    follower.look()
    assert told[1:] == ["base: step 6  loss 2.0000  1,234 tokens/s"]
    add(second, 1)
    follower.look()
    follower.say()
    assert told[2:] == ["dapt: step 1  loss 2.0000  1,234 tokens/s"]


def test_what_was_there_before_is_not_told(tmp_path: Path) -> None:
    add(tmp_path, 1, 2)
    told: list[str] = []
    follower = Follower(lambda: tmp_path, told.append)
    follower.look()
    follower.say()
    assert told == []


def test_a_number_that_is_not_there_is_left_out() -> None:
    assert format_metrics({"step": 3, "loss": None}) == "step 3"
