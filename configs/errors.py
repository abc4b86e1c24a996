"""Errors with an exit code by kind: where, what was given, what is expected, what to do."""

from typing import ClassVar


class OnwardError(Exception):
    """Base of every error meant for a person; its message fits one screen."""

    exit_code: ClassVar[int] = 1


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
