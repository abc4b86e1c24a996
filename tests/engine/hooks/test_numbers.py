"""Numbers on a full disk: none is lost, none is written twice, and a save hears of it."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.disk import DiskError
from engine.hooks import JsonLines, TensorBoardHook
from engine.protocols import Progress
from tests.engine.hooks.fakes import FakeBackend
from tests.engine.hooks.test_tensorboard import scalars


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_wait_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    with largest_file(20):
        lines.append({"step": 2})
        lines.append({"step": 3})
        # What was half written is taken back: nothing is ever there twice.
        assert steps(lines.path) == [1]
        with pytest.raises(DiskError, match=r"no space .*bytes needed"):
            lines.sync()
    assert caplog.text.count("numbers wait for room") == 1
    lines.append({"step": 4})
    lines.sync()
    assert steps(lines.path) == [1, 2, 3, 4]


def test_lines_of_steps_that_are_made_again_do_not_wait(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    with largest_file(20):
        lines.append({"step": 2})
    lines.cut_after(1)
    lines.append({"step": 2})
    assert steps(lines.path) == [1, 2]


def test_a_board_leaves_out_what_the_disk_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    board: Any = TensorBoardHook(tmp_path)
    board.on_start(FakeBackend(), Progress(0))
    board.write("train", 1, {"loss": 1.0})
    board.state_dict()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(board._writer, "_get_file_writer", refuse)
    board.write("train", 2, {"loss": 2.0})
    board.write("train", 3, {"loss": 3.0})
    board.on_end(FakeBackend(), Progress(3))
    assert caplog.text.count("some numbers are left out: [Errno 28]") == 1
    assert scalars(tmp_path, "1 learning/loss") == [(1, 1.0), (3, 3.0)]
