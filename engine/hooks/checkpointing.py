"""Checkpoints every so many steps and at the end, the newest few of them kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint import prune, save
from engine.protocols import Backend, Hook, Progress, StepRecord, Stop


class CheckpointHook(Hook):
    """Saves after every ``every``-th step and after step ``steps``; not when a step raised.

    Stands last among the hooks: what is saved is what the others have seen.

    Attributes:
        stop: what may end the run early; then the state is saved after that step, too.
    """

    name = "checkpointing"

    def __init__(
        self,
        root: Path,
        fingerprint: str,
        state: Callable[[Progress], Mapping[str, Any]],
        every: int,
        keep: int,
        steps: int,
    ) -> None:
        """Set up.

        Args:
            root: the stage's folder of checkpoints.
            fingerprint: of the recipe.
            state: gives the JSON-able rest of the state (cursor, hooks); called on every rank.
            every: steps between two checkpoints.
            keep: how many of the newest stay.
            steps: the last step of the run.
        """
        self._root = root
        self._fingerprint = fingerprint
        self._state = state
        self._every = every
        self._keep = keep
        self._steps = steps
        self.stop: Stop | None = None

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Save if it is time; ResourceError if the disk refuses, earlier checkpoints untouched."""
        del record
        is_last = progress.step == self._steps or (self.stop is not None and self.stop.is_agreed)
        if progress.step % self._every and not is_last:
            return
        save(self._root, progress, backend, self._state(progress), self._fingerprint)
        if backend.rank == 0:
            prune(self._root, self._keep, progress.step)
        if self.stop and not is_last:
            # Who asked during a long save is not made to wait for one more step and its save.
            self.stop.agreed()
