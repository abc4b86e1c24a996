"""What each rank of a launch leaves word of, and what the launcher makes of it."""

import contextlib
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from configs.errors import (
    BY_NAME,
    Cause,
    LaunchError,
    OnwardError,
    Preempted,
    ResourceError,
    note_step,
    step_of,
)
from configs.schema import Config
from launcher.interruption import Interrupted
from launcher.run_folder import write_atomically
from launcher.secrecy import mask

logger = logging.getLogger(__name__)
_LOST_PEER = (
    "connection closed by peer",
    "connection was likely closed",
    "remote process exiting prematurely",
    "connection reset",
    "broken pipe",
    "connection refused",
    "read error",
    "socket timeout",
    "timed out",
    "nccl communicator was aborted",
    "no longer valid",
)
_MOST_READ = 65536
"""Bytes of a log's end that its last lines are taken from."""


class Outcome(Config):
    """One rank's last word.

    Attributes:
        state: ``running`` if it never came to say more: then it was killed.
        kind: of the error: a class in configs.errors, or any other exception's.
        traceback: file with the traceback of an unexpected exception.
        signal: what stopped it, by number; 0: no signal.
        log: what it wrote to stdout and stderr; empty if that went to the launcher's own log.
        cause: of the error, if it tells one.
        step: finished steps when it was raised, if somebody counted.
    """

    rank: int
    host: str
    pid: int
    state: Literal["running", "done", "stopped", "error"] = "running"
    stage: str = ""
    kind: str = ""
    message: str = ""
    traceback: str = ""
    signal: int = 0
    log: str = ""
    cause: Cause | None = None
    step: int | None = None

    @property
    def is_lost_peer(self) -> bool:
        """An error that only says that another process is gone."""
        return self.state == "error" and says_lost_peer(self.message)


def says_lost_peer(message: str) -> bool:
    """Whether an exception's message only tells that another process is gone."""
    said = message.lower()
    return any(sign in said for sign in _LOST_PEER)


class Reporter:
    """A rank's side: writes its outcome as it goes; from any thread.

    Last words (``done``, ``stopped``, ``failed``) raise nothing: whoever says one ends, and must
    end where the disk is full, too.
    """

    def __init__(
        self, folder: Path, rank: int, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Leave the first word; ``is_wanted``: False once a later launch has the folder."""
        self._is_wanted = is_wanted
        self._path = folder / f"rank-{rank}.json"
        self._traceback = folder / f"rank-{rank}-traceback.txt"
        self._one_at_a_time = threading.Lock()
        self.outcome = Outcome(rank=rank, host=socket.gethostname(), pid=os.getpid())
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def _write(self, **changes: Any) -> None:
        # Whoever holds it may sit in a write that never ends.
        held = self._one_at_a_time.acquire(timeout=5)
        try:
            self.outcome = self.outcome.model_copy(update=changes)
            if not self._is_wanted():
                return
            write_atomically(self._path, self.outcome.model_dump_json(indent=1) + "\n")
        finally:
            if held:
                self._one_at_a_time.release()

    def logs_to(self, path: Path | None) -> None:
        """From now on what it writes goes there; None: to the launcher."""
        self._write(log=str(path or ""))

    def enters(self, stage: str, log: Path | None = None) -> None:
        """It begins a stage; ``log``: where what it writes goes to."""
        self._write(stage=stage, log=str(log or ""))

    def _end(self, **changes: Any) -> None:
        """A last word; to the log, and so to the launcher's screen, where the disk takes none."""
        try:
            self._write(**changes)
        except (ResourceError, OSError) as error:
            said = changes.get("message") or changes["state"]
            logger.warning("%s (no word of it could be left: %s)", said, error)

    def done(self) -> None:
        """It has run all stages."""
        self._end(state="done")

    def stopped(self, why: str, number: int = 0) -> None:
        """It was asked to stop, by that signal; an error it told of before stays its last word."""
        if self.outcome.state == "running":
            self._end(state="stopped", message=why, signal=number)

    def failed(self, error: BaseException) -> None:
        """It raised."""
        where = "" if isinstance(error, OnwardError) else self._keep_traceback(error)
        told = {"kind": _kind(error), "message": mask(str(error)), "traceback": where}
        self._end(state="error", cause=_cause(error), step=step_of(error), **told)

    def _keep_traceback(self, error: BaseException) -> str:
        """The file it is in; on a full disk where else to look."""
        text = mask("".join(traceback.format_exception(error)))
        if not self._is_wanted():
            return self.outcome.log
        try:
            self._traceback.write_text(text, encoding="utf-8")
        except OSError:
            return self.outcome.log or "the stage's launcher.log"
        return str(self._traceback)


def _kind(error: BaseException) -> str:
    """The nearest class of configs.errors, or the exception's own name."""
    for parent in type(error).__mro__:
        if BY_NAME.get(parent.__name__) is parent:
            return parent.__name__
    return type(error).__name__


def _cause(error: BaseException) -> Cause | None:
    if isinstance(error, OnwardError):
        return error.cause
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return Cause("memory" if is_memory else "unforeseen")


def forget_outcomes(folder: Path) -> None:
    """Take away what the ranks of an earlier launch have left, as far as the disk lets us."""
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def read_outcomes(folder: Path) -> list[Outcome]:
    """What the ranks have left, by rank."""
    found = []
    for path in folder.glob("rank-*.json"):
        try:
            found.append(Outcome.model_validate_json(path.read_bytes()))
        except ValidationError:
            logger.warning("%s: not what a rank writes; passed over", path)
    return sorted(found, key=lambda outcome: outcome.rank)


def explain(
    outcomes: Sequence[Outcome], world: int, code: int, log: Path
) -> OnwardError | Interrupted:
    """The one error behind a launch that ended with ``code``.

    That the state was saved comes first, then an error meant for a person, then an unexpected
    exception that is no mere echo of another rank's end, then an error that could leave its exit
    code alone, then ranks that were killed, then a signal that ended a rank before the state was
    saved.
    """
    told = explain_raised(outcomes) or _without_word(outcomes, code, log)
    if told is not None:
        return told
    stopped = [outcome for outcome in outcomes if outcome.state == "stopped" and outcome.signal]
    if stopped and not any(outcome.state == "running" for outcome in outcomes):
        return Interrupted(stopped[0].signal, why=f"{_who(stopped[0])}: {stopped[0].message}")
    return LaunchError(_lost(outcomes, world, code, log))


def explain_raised(outcomes: Sequence[Outcome]) -> OnwardError | None:
    """The error that ranks have told of, if any did that is no echo of another rank's end."""
    outcome = first_cause(outcomes)
    if outcome is None:
        return None
    if outcome.kind == Preempted.__name__:
        where = f"stage {outcome.stage}: " if outcome.stage else ""
        error: OnwardError = Preempted(f"{where}{outcome.message}")
    elif outcome.kind in BY_NAME:
        error = BY_NAME[outcome.kind](outcome.message, outcome.cause)
    else:
        error = OnwardError(_unexpected(outcome), outcome.cause)
    if outcome.step is not None:
        note_step(error, outcome.step)
    return error


def first_cause(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The rank whose error it is that ranks have told of; None if there are echoes alone."""
    raised = [outcome for outcome in outcomes if outcome.state == "error"]
    preempted = [outcome for outcome in raised if outcome.kind == Preempted.__name__]
    known = [outcome for outcome in raised if outcome.kind in BY_NAME]
    others = [outcome for outcome in raised if not outcome.is_lost_peer]
    return next(iter([*preempted, *known, *others]), None)


def _without_word(outcomes: Sequence[Outcome], code: int, log: Path) -> OnwardError | None:
    """The error of a rank whose disk was full when it ended: what it left is its exit code."""
    silent = [outcome for outcome in outcomes if outcome.state == "running"]
    kind = next((kind for kind in BY_NAME.values() if kind.exit_code == code), OnwardError)
    if not silent or kind is OnwardError:
        return None
    stage = silent[0].stage or "(start)"
    said = _tail(_log_of(silent[0], log))
    return kind(f"stage {stage}: ended with exit code {code}, and left no word; {said}")


def _lost(outcomes: Sequence[Outcome], world: int, code: int, log: Path) -> str:
    killed = [outcome for outcome in outcomes if outcome.state == "running"]
    if killed:
        return _killed(killed, code, log)
    if len(outcomes) < world:
        return f"{len(outcomes)} of {world} processes came up, exit code {code}; {_tail(log)}"
    for outcome in outcomes:
        if outcome.state != "done":
            said = _tail(_log_of(outcome, log))
            return f"stage {outcome.stage}: {_who(outcome)}: {outcome.message}; {said}"
    return f"the launch ended with exit code {code}; {_tail(log)}"


def _who(outcome: Outcome) -> str:
    return f"rank {outcome.rank} (process {outcome.pid} on {outcome.host})"


def _unexpected(outcome: Outcome) -> str:
    where = f"stage {outcome.stage}: " if outcome.stage else ""
    return (
        f"{where}{_who(outcome)} failed unexpectedly: {outcome.kind}: {outcome.message}\n"
        f"The traceback is in {outcome.traceback}"
    )


def _killed(killed: Sequence[Outcome], code: int, log: Path) -> str:
    names = " and ".join(map(_who, killed))
    name = _signal_name(code)
    cause = f"killed by {name}" if name else "killed (by which signal is not known)"
    hint = ""
    if name in {"SIGKILL", ""}:
        hint = " If nobody did that, the machine ran out of memory: see `dmesg | grep -i oom`."
    if name in {"SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS"}:
        hint = f" {_tail(_log_of(killed[0], log))}"
    return (
        f"stage {killed[0].stage or '(start)'}: {names}: {cause}.{hint}\n"
        "Run the same command again to go on from the last checkpoint."
    )


def _signal_name(code: int) -> str:
    """A child that a signal ended gives -N, which an exit code holds as 256-N."""
    number = 256 - code if code > 128 else -code
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def _log_of(outcome: Outcome, log: Path) -> Path:
    """The rank's own; the launcher's, ``log``, where it came to none."""
    return Path(outcome.log) if outcome.log else log


def _tail(log: Path, lines: int = 12) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MOST_READ))
            said = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        said = []
    return "\n".join([f"the last lines of {log}:", *(f"    {line}" for line in said[-lines:])])
