"""Faults on demand, for tests: a process that comes to a named point dies there, or worse.

``ONWARD_FAULT`` holds faults joined by ``;``, each ``ACTION@POINT[:KEY=VALUE,...]``, such as
``kill@checkpoint.shard:rank=1,step=8``. It strikes where all its keys agree with what the point
tells, and ``rank``; ``nth=N`` waits for the N-th such time, 1 being the first. Without the
variable a point costs one look at an empty list.

Actions: ``kill``, ``term``, ``usr1``, ``int`` and ``stop`` send this process that signal; ``full``
and ``eio`` raise the operating system's error for a full disk and a broken one; ``error`` raises a
RuntimeError; ``memory`` raises torch's out-of-memory error; ``sleep`` waits ``seconds``; ``nan``,
``inf`` and ``spike`` (times 100) change a value that is handed to ``altered``.

``ONWARD_FAULT_LOG`` names a file that gets a JSON line before each strike: which, where, when.
"""

import errno
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from configs.errors import RecipeError

VARIABLE = "ONWARD_FAULT"
LOG = "ONWARD_FAULT_LOG"
_SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
    "int": signal.SIGINT,
    "stop": signal.SIGSTOP,
}
_ALTERS = {"nan": float("nan"), "inf": float("inf"), "spike": 100.0}
_RAISES = ("full", "eio", "error", "memory")
T = TypeVar("T")


@dataclass
class Fault:
    """One fault, as ``text`` gave it; ``left`` counts down to the time it strikes."""

    text: str
    action: str
    point: str
    where: dict[str, str]
    seconds: float = 0.0
    left: int = 1
    _struck: bool = field(default=False, init=False)

    def strikes(self, point: str, told: dict[str, object]) -> bool:
        """Whether it strikes now; it does so once."""
        if self._struck or point != self.point:
            return False
        if any(str(told.get(key)) != value for key, value in self.where.items()):
            return False
        self.left -= 1
        self._struck = self.left == 0
        return self._struck


def parse(text: str) -> list[Fault]:
    """The faults of ``ONWARD_FAULT``; RecipeError if one is not understood."""
    return [_parse_one(part.strip()) for part in text.split(";") if part.strip()]


def _parse_one(text: str) -> Fault:
    action, found, rest = text.partition("@")
    point, _, keys = rest.partition(":")
    where = dict(part.split("=", 1) for part in keys.split(",") if "=" in part)
    if not found or not point or action not in {*_SIGNALS, *_ALTERS, *_RAISES, "sleep"}:
        msg = f"{VARIABLE}: '{text}': expected ACTION@POINT[:KEY=VALUE,...]"
        raise RecipeError(msg)
    left, seconds = int(where.pop("nth", "1")), float(where.pop("seconds", "0"))
    return Fault(text, action, point, where, seconds, left)


def load(text: str | None = None) -> None:
    """Take the faults from a text; None: from the environment."""
    _faults[:] = parse(os.environ.get(VARIABLE, "") if text is None else text)


def reached(point: str, **where: object) -> None:
    """This process has come to a point; most often nothing happens."""
    for fault in _faults:
        if fault.action not in _ALTERS and fault.strikes(point, _told(where)):
            _strike(fault)


def altered(point: str, value: T, **where: object) -> T:
    """The value, or what a fault makes of it (times nan, inf or 100)."""
    for fault in _faults:
        if fault.action in _ALTERS and fault.strikes(point, _told(where)):
            _note(fault)
            value = value * _ALTERS[fault.action]  # type: ignore[operator,assignment]  # a tensor or number
    return value


def _told(where: dict[str, object]) -> dict[str, object]:
    return {"rank": os.environ.get("RANK", "0"), **where}


def _note(fault: Fault) -> None:
    """Before it strikes: afterwards there may be nobody to tell."""
    if path := os.environ.get(LOG):
        rank = int(os.environ.get("RANK", "0"))
        line = json.dumps({"time": time.time(), "rank": rank, "fault": fault.text}) + "\n"
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line)


def _strike(fault: Fault) -> None:
    _note(fault)
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    elif fault.action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fault.action == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    elif fault.action == "memory":
        import torch

        msg = "injected: out of memory"
        raise torch.OutOfMemoryError(msg)
    else:
        msg = f"injected at {fault.point}"
        raise RuntimeError(msg)


_faults: list[Fault] = []
load()
