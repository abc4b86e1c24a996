"""The choice of a checkpoint by what was measured of it, and the end where none gets better."""

import logging
from collections.abc import Mapping
from typing import Any

from engine.choice import ChooseConfig, Contest
from engine.hooks.measured import Measured
from engine.leaving import Finish
from engine.protocols import Backend, Hook, Progress, StepRecord

_log = logging.getLogger(__name__)


class ChoiceHook(Hook):
    """Remembers the best step, has its checkpoint saved and kept, and ends the stage in time.

    Stands behind what measures and before the checkpoints.
    """

    name = "choice"

    def __init__(self, config: ChooseConfig, measured: Measured) -> None:
        self.contest = Contest(config)
        self._by = config.by
        self._measured = measured
        self._seen: int | None = None
        self._improved: int | None = None
        self._ended = ""

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Take in what was measured before the first step, or made good for."""
        self._look(backend, progress.step)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Take in what was measured after this step, if it was.

        Raises:
            RecipeError: what the choice is made by is not measured.
        """
        del record
        self._look(backend, progress.step)

    def wants_saved(self, step: int) -> bool:
        """Whether the state after this step, which is the present one, must be saved."""
        return self._improved == step or bool(self._ended)

    def needs(self, step: int) -> int | None:
        """The step whose checkpoint a run that resumes from ``step`` may be asked for."""
        best = self.contest.best(step)
        return best.step if best else None

    def leaves(self, progress: Progress) -> Finish | None:
        """Why the loop is to be left now that the state is saved."""
        return Finish(progress.step, self._ended) if self._ended else None

    def state_dict(self) -> dict[str, Any]:
        """All that was measured, and what was decided."""
        return {**self.contest.state_dict(), "seen": self._seen, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.contest.load_state_dict(state)
        self._seen = state.get("seen")
        self._ended = state.get("ended", "")
        self._improved = None

    def _look(self, backend: Backend, step: int) -> None:
        value = None if self._seen == step else self._measured.at(self._by, step)
        if value is None:
            return
        self._seen = step
        if self.contest.take_in(step, value):
            self._improved = step
            return
        self._ended = self.contest.given_up()
        if self._ended and backend.rank == 0:
            _log.warning("step %d: the stage ends here: %s", step, self._ended)
