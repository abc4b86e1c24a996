"""A rank's whole output in a file of the stage it runs; marked lines go on to the launcher."""

import contextlib
import io
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.logs import LIMIT, aside
from launcher.run_folder import RANK_LOGS, now

MARK = "\x1eonward "
RANK_MARK = "\x1erank "
STAGE_MARK = "\x1estage "
_MARKED = re.compile(f"({MARK}|{RANK_MARK}|{STAGE_MARK})")
_OF_A_RANK = re.compile(r"(?P<rank>\d+) (?P<host>\S+) (?P<level>[IW]) (?P<text>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Said:
    """One line of what a launch says.

    Attributes:
        kind: ``noise``: unmarked; ``line``: for the screen; ``stage``: the name of the one that
            begins; ``rank``: for the screen, from one of many.
        text: without the mark and the line's end.
        rank: whose it is, and on which host, for ``rank``.
        is_warning: whether it is one, for ``rank``.
    """

    kind: str
    text: str
    rank: int = 0
    host: str = ""
    is_warning: bool = False


def marked(text: str, rank: int, level: int) -> list[str]:
    """The lines of a log message as the launcher knows them; rank 0's progress is the run's."""
    if rank == 0 and level < logging.WARNING:
        mark = MARK
    else:
        letter = "W" if level >= logging.WARNING else "I"
        mark = f"{RANK_MARK}{rank} {socket.gethostname()} {letter} "
    return [f"{mark}{line}\n" for line in text.splitlines()]


def read_line(line: str) -> Iterator[Said]:
    """What a line of a launch's output holds, in order.

    pdsh, srun and mpirun put prefixes before it, and another process's unfinished line, or the
    rest of one, may stand in it, too.
    """
    noise, *rest = _MARKED.split(line.rstrip("\n"))
    if noise:
        yield Said("noise", noise)
    for mark, text in zip(rest[::2], rest[1::2], strict=True):
        if mark == STAGE_MARK:
            yield Said("stage", text.strip())
        elif mark == MARK:
            yield Said("line", text)
        elif found := _OF_A_RANK.fullmatch(text):
            is_warning = found["level"] == "W"
            yield Said("rank", found["text"], int(found["rank"]), found["host"], is_warning)
        else:
            yield Said("noise", text)


class RankLog:
    """Takes over the file descriptors 1 and 2, so that whatever writes there is in it, too.

    Nothing here raises: a full disk, or a launcher that is gone, must not end a rank by its log.
    """

    def __init__(self, rank: int, world: int, launch_id: str) -> None:
        """Keep the way to the launcher; what is written still goes there."""
        self._who = f"rank {rank} of {world}"
        self._name = f"rank-{rank}.log"
        self._launch_id = launch_id
        self._launcher = os.dup(2)
        self.path: Path | None = None
        # Whatever writes through Python is spared the error of a full disk.
        sys.stdout, sys.stderr = (_forgiving(number) for number in (1, 2))

    def enter(self, folder: Path) -> None:
        """From now on into the log of the stage that has this folder."""
        path = folder / RANK_LOGS / self._name
        if path == self.path:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            # What it says goes where it went before.
            sys.stderr.write(f"{path}: {error.strerror}; this rank's output is not kept there\n")
            return
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(opened, number)
        os.close(opened)
        self.path = path
        launch = f", launch {self._launch_id}" if self._launch_id else ""
        sys.stderr.write(
            f"--- {now()} {self._who} on {socket.gethostname()}, process {os.getpid()}{launch}\n"
        )

    def say(self, line: str) -> None:
        """A marked line to the launcher, in one piece."""
        with contextlib.suppress(OSError):
            os.write(self._launcher, line.encode("utf-8", errors="replace"))

    def keep_small(self) -> None:
        """Lay aside what was written, once it is more than LIMIT; from any thread."""
        path = self.path
        if path is None or not _is_large(2):
            return
        # Copied and cut, not renamed: processes that this one has started write on in the same.
        with contextlib.suppress(OSError):
            shutil.copyfile(path, aside(path))
        with contextlib.suppress(OSError):
            os.ftruncate(2, 0)


def _is_large(number: int) -> bool:
    try:
        return os.fstat(number).st_size > LIMIT
    except OSError:
        return False


class _Forgiving(io.FileIO):
    """What the disk does not take is lost, and nobody hears of it."""

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]  # it is a buffer
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _forgiving(number: int) -> io.TextIOWrapper:
    raw: io.RawIOBase = _Forgiving(number, "w", closefd=False)
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class ToLauncher(logging.Handler):
    """Sends messages to the launcher's screen."""

    def __init__(self, log: RankLog, rank: int) -> None:
        super().__init__()
        self._log = log
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        """Line by line, each in one piece as far as the pipe goes."""
        for line in marked(self.format(record), self._rank, record.levelno):
            self._log.say(line)
