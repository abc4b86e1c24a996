"""Errors with an exit code by kind: where, what was given, what is expected, what to do."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class Cause:
    """What an error is about, for programs: whether it is worth while to try again, say.

    Attributes:
        kind: ``space``: a full disk. ``memory``: of a device or host. ``port``: taken by another
            process. ``in_use``: a run folder in which another command is at work. ``unforeseen``:
            an exception of no kind that is known.
        path: what could not be written, of a full disk.
        needed: bytes, of a full disk; None if not known.
    """

    kind: Literal["space", "memory", "port", "in_use", "unforeseen"]
    path: str = ""
    needed: int | None = None


class OnwardError(Exception):
    """Base of every error meant for a person; its message fits one screen."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", cause: Cause | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class RecipeError(OnwardError):
    """A recipe, a DeepSpeed file or a command line that cannot be honoured."""

    exit_code = 2


class DataError(OnwardError):
    """Missing, malformed, empty, damaged or mismatched data."""

    exit_code = 3


class CheckpointError(OnwardError):
    """A checkpoint or export that is damaged, or belongs to something else."""

    exit_code = 4


class LaunchError(OnwardError):
    """Processes that could not be started, or were lost."""

    exit_code = 5


class NumericalError(OnwardError):
    """A loss or gradient that is not finite."""

    exit_code = 6


class ResourceError(OnwardError):
    """Disk, memory, ports or locks: something the machine has not got to give."""

    exit_code = 7


class Preempted(OnwardError):  # noqa: N818 -- an event, not a mistake
    """Stopped from outside with its state saved; run again to go on."""

    exit_code = 75


BY_NAME: dict[str, type[OnwardError]] = {
    kind.__name__: kind
    for kind in (
        RecipeError,
        DataError,
        CheckpointError,
        LaunchError,
        NumericalError,
        ResourceError,
        Preempted,
        OnwardError,
    )
}


def note_step(error: BaseException, step: int) -> None:
    """Keep with an error how many steps were finished when it was raised; the first one stays."""
    error.__dict__.setdefault("finished_steps", step)


def step_of(error: BaseException) -> int | None:
    """The steps that were finished when it was raised; None if nobody has noted them."""
    found = error.__dict__.get("finished_steps")
    return found if isinstance(found, int) else None
