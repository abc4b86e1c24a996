"""A worker's watch ends the process, whatever state the disk and the other ranks are in."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ResourceError
from configs.stop import StopRequest
from launcher import outcome, watch
from launcher.heartbeat import Pulse
from launcher.outcome import Outcome, Reporter
from launcher.watch import Watch


class Left(BaseException):
    """In the place of the process's end."""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The watch of rank 0, which was asked to stop a moment ago, and is waited for."""

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(watch, "_exit", leave)
    request = StopRequest()
    made = Watch(request, 60.0, tmp_path, Reporter(tmp_path, 0))
    with request.heeded():
        made._hear(signal.SIGTERM)
    return made


@pytest.fixture
def full(watched: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk takes nothing."""
    del watched

    def write(path: Path, text: str) -> None:
        del text
        raise ResourceError(f"{path}: no space")

    monkeypatch.setattr(outcome, "write_atomically", write)


@pytest.mark.usefixtures("full")
def test_a_full_disk_keeps_nobody_from_ending(
    watched: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Left, match="143"):
        watched._end("the state could not be saved within 60 s")
    with pytest.raises(Left, match="5"):
        watched.leave("nothing has gone on for 900 s", 5)
    assert "nothing has gone on for 900 s (no word of it could be left: " in caplog.text


@pytest.mark.parametrize("state", ["error", "stopped"])
def test_who_waits_for_a_rank_that_has_left_ends(
    watched: Watch, tmp_path: Path, state: str
) -> None:
    watched._end_in_time()
    other = Outcome(rank=1, host=socket.gethostname(), pid=os.getpid(), state=state)  # type: ignore[arg-type]
    (tmp_path / "rank-1.json").write_text(other.model_dump_json())
    with pytest.raises(Left, match="143"):
        watched._end_in_time()


def test_a_file_that_cannot_be_read_for_a_moment_ends_no_watch(
    watched: Watch, tmp_path: Path
) -> None:
    (tmp_path / "rank-1.json").write_text("")
    watched._end_in_time()


class Told(Pulse):
    """A pulse that says what a test wants."""

    def __init__(self, sign: str) -> None:
        self.sign = sign
        self.limit = 60.0

    def look(self) -> Any:
        return self.sign


@pytest.mark.parametrize("sign", ["over", "other"])
def test_a_rank_that_nobody_waits_for_ends_without_a_word(
    watched: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    word = (tmp_path / "rank-0.json").read_text()
    with pytest.raises(Left, match="5"):
        watched._heed(Told(sign))
    assert "this rank ends" in capsys.readouterr().err
    assert (tmp_path / "rank-0.json").read_text() == word


def test_a_launcher_that_is_mute_is_a_request_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(watch, "_exit", leave)
    request = StopRequest()
    made = Watch(request, 60.0, tmp_path, Reporter(tmp_path, 0))
    made._heed(Told("alive"))
    assert not request.is_asked
    # The machine that holds the other end of its stdin knows better.
    monkeypatch.setenv("ONWARD_STDIN", "held")
    made._heed(Told("silent"))
    assert not request.is_asked
    monkeypatch.delenv("ONWARD_STDIN")
    with request.heeded():
        made._heed(Told("silent"))
    assert request.why == "no sign of `onward run` for 60 s"
    made._end_in_time()
    # Where nobody saves it ends.
    early = Watch(StopRequest(), 60.0, tmp_path, None)
    early._heed(Told("silent"))
    with pytest.raises(Left, match="143"):
        early._end_in_time()
