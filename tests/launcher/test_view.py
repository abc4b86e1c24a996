"""One line of progress, and warnings above it, each told once."""

import io
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher import view as module
from launcher.rank_log import Said
from launcher.view import View, format_ranks


class Screen(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def make(screen: Screen, environment: Mapping[str, str] | None = None, **more: bool) -> View:
    def tell(line: str) -> None:
        screen.write(f"{line}\n")

    return View(tell, screen, environment or {}, one_host=more.get("one_host", False))


def warning(rank: int, host: str, text: str = "slow") -> Said:
    return Said("rank", text, rank, host, is_warning=True)


def test_equal_warnings_of_many_ranks_are_one(now: list[float], tmp_path: Path) -> None:
    screen = Screen()
    view = make(screen)
    view.warnings_log = lambda: tmp_path / "logs/warnings.log"
    for rank in (2, 0, 1, 5):
        view.hear(warning(rank, f"node-{rank // 4}"))
    view.hear(warning(3, "node-7", "other"))
    view.hear(warning(3, "node-7", "other"))
    view.hear(Said("rank", "cell 4", 1, "node-1"))
    view.tick()
    assert screen.getvalue() == "rank 1 on node-1: cell 4\n"
    now[0] += 1.5
    view.tick()
    told = screen.getvalue().splitlines()[1:]
    assert told == ["rank 0-2, 5: slow", "rank 3 on node-7: other  (2 times)"]
    # One host needs no name, and rank 0 alone speaks for the run.
    view.hear(warning(0, "node-0"))
    view.close()
    assert screen.getvalue().splitlines()[3:] == ["slow"]
    kept = (tmp_path / "logs/warnings.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in kept] == [*told, "slow"]
    alone = Screen()
    view = make(alone, one_host=True)
    view.hear(warning(1, "here"))
    view.close()
    assert alone.getvalue() == "rank 1: slow\n"


def test_where_lines_stay_progress_is_told_now_and_then(now: list[float]) -> None:
    screen = Screen()
    view = make(screen)
    for second in range(25):
        now[0] = float(second)
        view.show(f"step {second}")
    view.close()
    assert screen.getvalue() == "step 10\nstep 20\nstep 24\n"


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal_one_line_is_refreshed(now: list[float], no_colour: str) -> None:
    del now
    screen = Screen(is_terminal=True)
    view = make(screen, {"TERM": "xterm", "NO_COLOR": no_colour})
    view.show("step 1")
    view.show("step 2")
    view.say("saved")
    view.show("x" * 500)
    assert screen.getvalue().startswith("step 1\r\x1b[Kstep 2\r\x1b[Ksaved\nstep 2\r\x1b[Kxxx")
    assert len(screen.getvalue().splitlines()[-1]) < 200
    view.hear(warning(1, "here"))
    view.close()
    assert screen.getvalue().endswith(f"{'x' * 500}\n")
    assert ("\x1b[33mrank 1 on here: slow\x1b[0m\n" in screen.getvalue()) is not bool(no_colour)
    dumb = Screen(is_terminal=True)
    make(dumb, {"TERM": "dumb"}).show("step 1")
    assert dumb.getvalue() == ""


def test_a_terminal_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    def tell(line: str) -> None:
        raise OSError(line)

    view = View(tell, Screen(), {}, one_host=True)
    view.warnings_log = lambda: tmp_path
    view.say("lost")
    view.hear(warning(1, "here"))
    view.show("lost")
    view.close()


def test_ranks_are_told_briefly() -> None:
    assert format_ranks([7, 0, 1, 2, 3, 9, 10]) == "0-3, 7, 9-10"
