"""A training stage's metrics are shown while it runs, also across stages and a resume."""

import json
from pathlib import Path

from launcher.progress import Follower, Progress, format_metrics, last_start


class Shown:
    """In the place of the view: what it was given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.kept = 0

    def show(self, status: str) -> None:
        self.lines.append(status)

    def keep_status(self) -> None:
        self.kept += 1

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


def add(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 2.0, "tokens_per_second": 1234.0}) + "\n")


def test_new_lines_are_shown_and_old_ones_are_not(tmp_path: Path) -> None:
    first, second = tmp_path / "base", tmp_path / "dapt"
    now, view, time = [first], Shown(), [0.0]
    follower = Follower(lambda: now[0], view, "2 hosts, 16 ranks", lambda: time[0])  # type: ignore[arg-type]
    follower.look()
    add(first, 9, 10)
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    follower.look()
    follower.look()
    said = "loss 2.0000  1,234 tokens/s  (2 hosts, 16 ranks)"
    assert view.lines == [f"base: step 10  {said}"]
    (first / "metrics.jsonl").write_text("")
    follower.look()
    add(first, 5, 6)
    follower.look()
    assert view.lines[1:] == [f"base: step 6  {said}"]
    kept = view.kept
    now[0] = second
    follower.look()
    assert view.kept == kept + 1
    add(second, 1)
    (second / "starts.jsonl").write_text('{"step": 0, "steps": 9}\n{"step": 1, "steps": 101}\n')
    follower.look()
    time[0] = 60.0
    add(second, 21)
    follower.look()
    numbers = "loss 2.0000  1,234 tokens/s"
    assert view.lines[2:] == [
        f"dapt: step 1/101  {numbers}  (2 hosts, 16 ranks)",
        f"dapt: step 21/101  {numbers}  ETA 4 min  (2 hosts, 16 ranks)",
    ]


def test_what_was_there_before_is_not_shown(tmp_path: Path) -> None:
    add(tmp_path, 1, 2)
    view = Shown()
    follower = Follower(lambda: tmp_path, view, "", lambda: 0.0)  # type: ignore[arg-type]
    follower.look()
    follower.look()
    assert view.lines == []


def test_a_file_that_cannot_be_read_ends_no_progress(tmp_path: Path) -> None:
    view = Shown()
    progress = Progress(lambda: tmp_path, view)  # type: ignore[arg-type]
    progress._look()
    (tmp_path / "metrics.jsonl").write_text("no json\n")
    progress._look()
    assert "cannot be read" in view.lines[0]
    assert last_start(tmp_path) == {}


def test_a_number_that_is_not_there_is_left_out() -> None:
    assert format_metrics({"step": 3, "loss": None}) == "step 3"
