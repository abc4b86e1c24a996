"""The page on a run in progress shows what its files say, and stops no training."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from configs.errors import NumericalError, Preempted
from engine.board.curves import Curve, draw
from engine.hooks import LivePage
from engine.leaving import GoOn
from engine.protocols import Progress
from tests.engine.hooks.fakes import FakeBackend


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def step(hook: LivePage, number: int) -> None:
    hook.after_step(FakeBackend(), Progress(number), None)  # type: ignore[arg-type]  # unread


def text(page: str) -> str:
    """What a person reads, without the marks."""
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "dapt"
    metrics = [
        {"step": n, "loss": 5.0 - n / 10, "tokens_per_second": 3400.0, "tokens": n, "skipped": 1}
        for n in (10, 20)
    ]
    write(folder / "metrics.jsonl", *metrics)
    held = {"loss": 4.5, "average": {"loss": 4.25}}
    write(folder / "validation.jsonl", {"step": 0, "sets": {"general": held}})
    write(folder / "forgetting.jsonl", {"step": 0, "change": 0.5, "low": 0.25, "high": 0.75})
    write(folder / "skipped.jsonl", {"step": 7, "why": "the loss <b>leapt</b>"})
    start = {"time": "2026-01-01", "host": "node-1", "ranks": 2}
    write(folder / "starts.jsonl", start | {"step": 0}, start | {"step": 10})
    write(folder.parent / "restarts.jsonl", {"kind": "host", "message": "node-2 is gone"})
    write(folder / "checkpoints/step-20/manifest.json")
    write(folder / "checkpoints/step-100/state.json")
    (folder / "logs").mkdir()
    (folder / "logs/warnings.log").write_text("rank 0-1: slow <script>alert(1)</script>\n")
    return folder


def make(folder: Path, times: list[float]) -> LivePage:
    settings = {"lr": 0.001, "model": "<i>x</i>"}
    return LivePage(folder / "live.html", settings, 10, 60, lambda: times[0])


def test_it_shows_what_the_files_say(stage: Path) -> None:
    times = [0.0]
    hook = make(stage, times)
    hook.on_start(FakeBackend(), Progress(10))
    times[0] = 100.0
    step(hook, 20)
    page = (stage / "live.html").read_text()
    said = text(page)
    for words in (
        "dapt running",
        "step 20 of 60",
        "left, about 7 min",
        "loss 3.0000",
        "tokens a second 3,400",
        "newest checkpoint step-20",
        "steps skipped 1",
        "restarts 1",
        "Held-out loss",
        "general, average 4.25",
        "change 0.5",
        "rank 0-1: slow &lt;script&gt;alert(1)&lt;/script&gt;",
        "the loss &lt;b&gt;leapt&lt;/b&gt;",
        "host: node-2 is gone",
        "lr 0.001",
    ):
        assert words in said, words
    assert 'http-equiv="refresh"' in page
    assert "<script>alert" not in page
    assert "<i>" not in page
    # Nothing is fetched from anywhere.
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", page)


def test_a_page_is_written_now_and_then_and_follows_a_run_that_goes_back(stage: Path) -> None:
    times = [0.0]
    hook = make(stage, times)
    hook.on_start(FakeBackend(), Progress(0))
    page = stage / "live.html"
    step(hook, 10)
    page.unlink()
    for number, at in ((15, 99.0), (20, 5.0)):
        times[0] = at
        step(hook, number)
        assert not page.exists()
    # A rollback has replaced the file.
    write(stage / "aside", {"step": 5, "loss": 9.0, "tokens_per_second": None})
    (stage / "aside").replace(stage / "metrics.jsonl")
    times[0] = 40.0
    step(hook, 30)
    assert "loss 9.0000" in text(page.read_text())
    assert 'points="304.0,' in page.read_text(), "one point stands in the middle"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "dapt trained"),
        (Preempted("stopped after step 20 of 60, its state saved"), "stopped after step 20 of"),
        (NumericalError("step 3: the loss is not finite"), "NumericalError: step 3: the loss"),
    ],
)
def test_the_last_page_tells_how_it_ended(stage: Path, error: Exception | None, words: str) -> None:
    hook = make(stage, [0.0])
    with contextlib.suppress(Preempted, NumericalError), contextlib.ExitStack() as ending:
        ending.callback(hook.on_end, FakeBackend(), Progress(20))
        if error:
            raise error
    page = (stage / "live.html").read_text()
    assert words in text(page)
    assert 'http-equiv="refresh"' not in page


def test_a_loop_that_is_left_to_go_on_has_not_ended(stage: Path) -> None:
    hook = make(stage, [0.0])
    with contextlib.suppress(GoOn), contextlib.ExitStack() as ending:
        ending.callback(hook.on_end, FakeBackend(), Progress(20))
        raise GoOn(20)
    assert not (stage / "live.html").exists()


@pytest.mark.parametrize("broken", ["metrics", "page"])
def test_what_goes_wrong_is_one_warning(
    stage: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    if broken == "metrics":
        (stage / "metrics.jsonl").write_text("no json\n")
    else:
        (stage / ".live.html").symlink_to("/dev/full")
    times = [0.0]
    hook = make(stage, times)
    hook.on_start(FakeBackend(), Progress(0))
    for number in (10, 20):
        times[0] += 100.0
        step(hook, number)
    hook.on_end(FakeBackend(), Progress(20))
    assert caplog.text.count("live.html is not kept up to date") == 1


def test_a_long_curve_keeps_its_ends_and_few_points() -> None:
    curve = Curve()
    for number in range(100_000):
        curve.add(number, float(number))
    curve.add(100_000, None)
    assert len(curve.points) <= 1000
    assert curve.points[0] == (0, 0.0)
    assert curve.points[-1] == (99_999, 99_999.0)
    assert draw("nothing", {"empty": Curve()}) is None
