"""``onward board``: which runs are shown, under which names, and where to look first."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from configs.errors import DataError, ResourceError
from engine.board.session import Session
from engine.hooks import TensorBoardHook
from engine.protocols import Progress
from launcher.board import open_board, open_to
from tests.engine.hooks.fakes import FakeBackend


def make_run(root: Path, *stages: str) -> Path:
    """A run of the stages ``one`` and ``two``; those named have event files."""
    root.mkdir(parents=True)
    kinds = {"rows": "task", "one": "pretrain", "two": "pretrain"}
    recipe = {"stages": {name: {"kind": kind} for name, kind in kinds.items()}}
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    for stage in stages:
        hook: Any = TensorBoardHook(root / stage / "tensorboard", Session(stage, {"lr": 1.0}))
        hook.on_start(FakeBackend(), Progress())
        hook.write("train", 1, {"loss": 1.0, "grad_norm": 2.0})
        hook.finish(FakeBackend(), 2)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tree(command: list[str]) -> Path:
    (given,) = [word for word in command if word.startswith("--logdir=")]
    return Path(given.removeprefix("--logdir="))


def links(root: Path) -> dict[str, Path]:
    found = (path for path in root.rglob("*") if path.is_symlink())
    return {str(path.relative_to(root)): path.readlink() for path in found}


def test_the_stages_of_one_run_have_their_names_begun_or_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "one")
    board = open_board([run], None)
    expected = {name: run / name / "tensorboard" for name in ("one", "two")}
    assert links(tree(board.command)) == expected
    assert "--host=127.0.0.1" in board.command
    assert not any(word.startswith("--bind_all") for word in board.command)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / "runs" / name, "one") for name in ("a", "b"))
    for given in ([first, second], [tmp_path / "runs"], [first, tmp_path / "runs"]):
        found = links(tree(open_board(given, None).command))
        assert set(found) == {"a/one", "a/two", "b/one", "b/two"}


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run", "one") for place in ("x", "y")]
    assert set(links(tree(open_board(runs, None).command))) == {
        *("x-run/one", "x-run/two", "y-run/one", "y-run/two")
    }


def test_the_first_page_has_the_curves_that_are_there_on_top(tmp_path: Path) -> None:
    board = open_board([make_run(tmp_path / "run", "one")], None)
    (line,) = [line for line in board.told() if "#timeseries" in line]
    query = parse_qs(urlsplit(line.split()[-1]).query)
    pinned = [card["tag"] for card in json.loads(query["pinnedCards"][0])]
    assert pinned == ["1 learning/loss", "4 health/gradient norm"]
    assert board.told()[0].split()[-1].startswith(f"{board.address}/#custom_scalars")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: root, "not a run folder"),
        (lambda root: make_run(root / "run"), "no stage has written TensorBoard files yet"),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_says_why(
    tmp_path: Path, make: Any, told: str
) -> None:
    folder = make(tmp_path)
    with pytest.raises(DataError, match=told):
        open_board([folder], None)


def test_a_recipe_that_is_none_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "one")
    (run / "recipe.yaml").write_text("stages: [1, 2]")
    with pytest.raises(DataError, match=r"recipe\.yaml: not a recipe"):
        open_board([run], None)


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "one")
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        with pytest.raises(ResourceError, match="in use"):
            open_board([run], held.getsockname()[1])


def test_tensorboard_serves_it(tmp_path: Path) -> None:
    """Links, also to what is not there yet, and the columns of HParams, by the server itself."""
    board = open_board([make_run(tmp_path / "run", "one")], None)
    with subprocess.Popen(
        [sys.executable, *board.command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            runs = wait_for_runs(board.address, 2)
        finally:
            server.terminate()
    assert sorted(runs) == ["(all)", "one"]


def wait_for_runs(address: str, count: int) -> list[str]:
    runs: list[str] = []
    limit = time.monotonic() + 60
    while len(runs) < count and time.monotonic() < limit:
        try:
            with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
                runs = json.load(answer)
        except OSError:
            pass
        time.sleep(0.2)
    return runs


def test_pages_of_runs_are_named_and_another_address_is_told_of(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run", "one")
    (run / "one/live.html").write_text("")
    board = open_board([run], None, "0.0.0.0")
    assert "--host=0.0.0.0" in board.command
    assert board.address.startswith(f"http://{socket.gethostname()}:")
    assert any(line.endswith("my%20run/one/live.html") for line in board.told())
    assert "everyone who reaches this machine there sees the runs" in open_to("0.0.0.0")
    assert [open_to(host) for host in ("127.0.0.1", "::1", "localhost")] == ["", "", ""]
    with pytest.raises(ResourceError, match=r"--host 192.0.2.1: not an address of this machine"):
        open_board([run], None, "192.0.2.1")
