"""The way out of the loop for what other hooks have decided, once the state is saved."""

from collections.abc import Sequence
from typing import Protocol

from engine.leaving import Leave
from engine.protocols import Backend, Hook, Progress, StepRecord


class Decides(Protocol):
    """A hook that may want the loop to be left, on all ranks alike."""

    def leaves(self, progress: Progress) -> Leave | None:
        """What to leave it with; None: nothing."""
        ...


class Leaving(Hook):
    """Stands last, behind the checkpoints."""

    name = "leaving"

    def __init__(self, deciders: Sequence[Decides]) -> None:
        self._deciders = tuple(deciders)

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Leave, if that was decided before, or by a measurement that was made good."""
        del backend
        self._leave(progress)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Leave, if that was decided at this step."""
        del backend, record
        self._leave(progress)

    def _leave(self, progress: Progress) -> None:
        for decider in self._deciders:
            event = decider.leaves(progress)
            if event is not None:
                raise event
