"""Ranks that are stopped, stuck or killed: the others end soon, and say which one it was."""

import json
import re
from pathlib import Path

import pytest

from configs.errors import LaunchError
from tests.launcher.pretraining import Launches, make_data
from tests.warm import WarmWorkers

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_rank_that_is_stopped_is_named_and_the_others_end(
    warm: WarmWorkers, data: Path, tmp_path: Path
) -> None:
    launches = Launches(warm, data, tmp_path / "run", hang_after=5.0)
    ended = launches.run("stop@forward:rank=1,step=3", patience=2.0)
    assert ended[0].code == 5, ended[0].text
    error = launches.explained(ended)
    assert isinstance(error, LaunchError)
    pid = json.loads((launches.folder / "rank-1.json").read_text())["pid"]
    assert f"rank 1 (process {pid} on " in str(error)
    assert "gives no sign: it is stopped (state T); it was last seen in" in str(error)
    stacks = (launches.folder / "hang-rank-0.txt").read_text()
    assert "in train_step" in stacks
    assert "watchdog.py" in stacks


def test_a_rank_that_is_stuck_is_behind_and_every_stack_is_there(
    warm: WarmWorkers, data: Path, tmp_path: Path
) -> None:
    launches = Launches(warm, data, tmp_path / "run", hang_after=5.0)
    ended = launches.run("sleep@forward:rank=1,step=3,seconds=90")
    assert [each.code for each in ended] == [5, 5], ended[0].text
    error = str(launches.explained(ended))
    assert re.search(r"is behind: in 'forward' after 3 steps, silent for [5-9]", error)
    assert error.index("rank 1 (process") < error.index("is behind")
    assert "the others wait in 'backward' after 3 steps" in error
    assert "faults.py" in (launches.folder / "hang-rank-1.txt").read_text()


@pytest.mark.parametrize(
    "point",
    [
        "start",
        "data:step=3",
        "reduce:step=3",
        "backward:step=3",
        "optimizer:step=3",
        "validation:step=4",
    ],
)
def test_a_killed_rank_is_named_within_seconds(
    warm: WarmWorkers, data: Path, tmp_path: Path, point: str
) -> None:
    launches = Launches(warm, data, tmp_path / "run")
    # Ranks that were still there after twenty seconds would be killed.
    ended = launches.run(f"kill@{point}{',' if ':' in point else ':'}rank=1")
    assert (ended[0].signal, ended[1].signal) == (None, 9), ended[0].text
    error = launches.explained([ended[1], ended[0]])
    assert isinstance(error, LaunchError)
    assert "rank 1 (process" in str(error)
    assert "killed by SIGKILL" in str(error)
    assert "rank 0" not in str(error)


def test_a_rank_that_cannot_notice_a_loss_by_itself_ends_too(
    warm: WarmWorkers, data: Path, tmp_path: Path
) -> None:
    launches = Launches(warm, data, tmp_path / "run")
    ended = launches.run("kill@forward:rank=1,step=3;sleep@forward:rank=0,step=3,seconds=90")
    assert ended[0].signal is None, "it was killed after its time was over"
    assert "rank 0" not in str(launches.explained([ended[1], ended[0]]))
