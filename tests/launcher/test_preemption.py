"""Ranks that are signalled in mid-run save, leave with 75, and go on as if nothing had been."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from configs.errors import Preempted
from launcher.interruption import Interrupted
from tests.launcher.pretraining import STAGE, STEPS, Launches, lines, make_data, numbers, saved
from tests.warm import Ended, WarmWorkers

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(warm: WarmWorkers, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    launches = Launches(warm, data, tmp_path_factory.mktemp("whole") / "run")
    ended = launches.run()
    assert codes(ended) == [0, 0], ended[0].text
    found = numbers(launches.output)
    assert [line["step"] for line in found["validation"]] == [0, 4, 8, 12]
    return found


def codes(ended: list[Ended]) -> list[int | None]:
    return [each.code for each in ended]


def measured(launches: Launches) -> list[int]:
    return [line["step"] for line in lines(launches.output / STAGE / "validation.jsonl")]


def test_signals_anywhere_save_the_state_and_change_nothing(
    warm: WarmWorkers, data: Path, tmp_path: Path, whole: Any
) -> None:
    launches = Launches(warm, data, tmp_path / "run")
    # In the first validation of all there is nothing to save.
    ended = launches.run("term@validation:rank=1,step=0,nth=2")
    assert codes(ended) == [75, 75], ended[0].text
    assert "stopped after step 0 of 12; run the same" in str(launches.explained(ended))
    assert (saved(launches.output), measured(launches)) == ([], [])
    steps = []
    for fault in (
        # All ranks, one of which waits for data.
        "usr1@data:step=4;sleep@data:step=4,seconds=0.5,rank=0",
        # In a save, which is finished; no second one is made.
        "term@checkpoint.half:rank=1,step=5",
        # In mid-validation, which leaves no line.
        "int@validation:rank=0,step=8,nth=2",
        # In a step, by one rank.
        "term@backward:rank=0,step=9",
    ):
        ended = launches.run(fault)
        assert codes(ended) == [75, 75], fault + ended[0].text + ended[1].text
        error = launches.explained(ended)
        assert isinstance(error, Preempted)
        steps.append(saved(launches.output)[-1])
        assert f"stage dapt: stopped after step {steps[-1]} of {STEPS}, its" in str(error)
        assert measured(launches) == [step for step in (0, 4, 8) if step < steps[-1]]
    assert steps[0] in {2, 3, 4}
    assert steps[1:3] == [5, 8]
    assert steps[3] in {10, 11}
    ended = launches.run()
    assert codes(ended) == [0, 0], ended[0].text
    assert numbers(launches.output) == whole


@pytest.mark.grid
def test_who_cannot_save_in_time_is_ended_and_the_last_checkpoint_stands(
    warm: WarmWorkers, data: Path, tmp_path: Path
) -> None:
    launches = Launches(warm, data, tmp_path / "run")
    # The grace is over while a rank sleeps in a step, and in mid-save.
    for fault in (
        "term@optimizer:step=5;sleep@forward:step=6,seconds=60",
        "term@forward:step=5;sleep@checkpoint.half:step=7,rank=1,seconds=60",
    ):
        ended = launches.run(fault, grace=1.0)
        assert codes(ended) == [143, 143], ended[0].text + ended[1].text
        error = launches.explained(ended)
        assert isinstance(error, Interrupted)
        assert "the state could not be saved within 1 s; the last checkpoint stands" in str(error)
        assert saved(launches.output) == [5]
    # Asked again, some seconds later; two signals within a moment are one request.
    handle = launches.start("sleep@forward:step=6,seconds=60")
    until(lambda: len(lines(launches.output / STAGE / "metrics.jsonl")) == 6)
    handle.kill(signal.SIGUSR1)
    handle.kill(signal.SIGTERM)
    time.sleep(3.5)
    assert handle.ended == []
    handle.kill(signal.SIGTERM)
    ended = handle.wait(20)
    assert set(codes(ended)) <= {128 + signal.SIGUSR1, 128 + signal.SIGTERM}, ended[0].text
    assert "asked again before the state was saved" in str(launches.explained(ended))
    # Before the first step nobody heeds it: at once.
    ended = launches.run("term@start:rank=0;sleep@start:seconds=60")
    assert codes(ended) == [143, 143], ended[0].text
    assert saved(launches.output) == [5]


def test_a_file_of_the_launchers_asks_all_ranks(
    warm: WarmWorkers, data: Path, tmp_path: Path
) -> None:
    launches = Launches(warm, data, tmp_path / "run", steps=2000, epochs=None)
    handle = launches.start()
    metrics = launches.output / STAGE / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size)
    (launches.folder / "stop").write_text("SIGUSR1")
    ended = handle.wait(30)
    assert codes(ended) == [75, 75], ended[0].text
    assert "its state saved" in str(launches.explained(ended))


def until(is_so: Any) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
