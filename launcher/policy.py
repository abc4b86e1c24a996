"""What to do after a failure: pure, so that it can be read and tested as a table."""

from dataclasses import dataclass
from typing import Literal

from launcher.blame import Failure, Kind

LONGEST_BACK_OFF = 300.0

_NEVER: dict[Kind, str] = {
    "recipe": "the recipe or the command has to change first",
    "data": "the data has to change first",
    "checkpoint": "no checkpoint can be gone on from, so a person must decide what is kept",
    "numerical": "the same numbers would come again. A stage's `guard` (docs/guide/checkpoints.md) "
    "skips steps that are not finite and goes back before a row of them; it may be added to a run "
    "that has failed",
    "in_use": "another command is at work in this run folder",
}
_TWICE: dict[Kind, str] = {
    "crash": "the same exception at the same step, twice",
    "memory": "out of memory at the same step, twice: it would come again; the error says what "
    "needs less",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a supervised run is kept going.

    Attributes:
        restarts: so many in a row may bring no progress.
        min_hosts: with so many hosts it may go on; None: with all of them alone.
        patience: seconds to wait for room on a disk, or for a host that does not answer.
    """

    restarts: int = 3
    min_hosts: int | None = None
    patience: float = 1800.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes after a failure.

    Attributes:
        act: ``end``; ``restart`` after a pause; ``at_once``: without one; ``room``: as soon as
            there is room on the disk.
        why: it ends, for people.
    """

    act: Literal["end", "restart", "at_once", "room"]
    why: str = ""


def decide(failure: Failure, before: Failure | None, *, moved: bool = False) -> Decision:
    """What to do after a failure.

    Args:
        failure: the last one.
        before: the one before it, if nothing has been achieved in between.
        moved: the next start would leave out a host that was in both.
    """
    if failure.kind in _NEVER:
        return Decision("end", _NEVER[failure.kind])
    if failure.kind in _TWICE and before and not moved and _is_same(failure, before):
        return Decision("end", _TWICE[failure.kind])
    if failure.kind == "space":
        return Decision("room")
    return Decision("at_once" if failure.kind == "port" else "restart")


def _is_same(failure: Failure, before: Failure) -> bool:
    """An exception before the first step may be a moment's trouble; too little memory is not."""
    is_counted = failure.step is not None or failure.kind == "memory"
    same = (failure.kind, failure.stage, failure.step, failure.sameness)
    return is_counted and same == (before.kind, before.stage, before.step, before.sameness)


def back_off(number: int) -> float:
    """Seconds before the restart of that number, 1 being the first since there was progress."""
    return min(LONGEST_BACK_OFF, 2.0 ** min(number - 1, 30))
