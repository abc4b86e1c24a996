"""The guard: steps out of bounds are not taken; too many in a row are rolled back."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import NumericalError
from engine.guarding import Avoided, Bounds, GuardConfig, RollBack, Skipped
from engine.hooks.numbers import BEFORE_ALL, JsonLines
from engine.protocols import Backend, Hook, Permit, Progress, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

Rows = Callable[[int], Sequence[Mapping[str, Any]]]
"""(step, counted from 0) -> where each row of its global batch comes from; JSON-able."""


class GuardHook(Hook):
    """Judges each step by the loss of the global batch and the norm of its gradient.

    Both are summed over the ranks first, so that all decide alike; reading them is the one time
    a step that the device is waited for. Every step that nothing was learned from is a line of
    ``skipped.jsonl``: step (as in ``metrics.jsonl``), avoided (passed over after a rollback, not
    tried again), why, loss, norm, threshold (``null`` where there is no number) and rows.

    Stands first among the hooks: the others shall not see a step that is rolled back.
    """

    name = "guard"

    def __init__(self, config: GuardConfig, path: Path, rows: Rows) -> None:
        """Set up; ``path``: of ``skipped.jsonl``."""
        self._config = config
        self._lines = JsonLines(path)
        self._rows = rows
        self._bounds = Bounds(config)
        self._row: tuple[Skipped, ...] = ()
        self._avoided: tuple[Avoided, ...] = ()
        self._judged: _Judged | None = None
        self._is_first = False

    def avoids(self, step: int) -> bool:
        """Whether a rollback passes over this step."""
        return any(each.start <= step < each.stop for each in self._avoided)

    def judge(self, backend: Backend, step: int, losses: "Tensor", counts: "Tensor") -> Permit:
        """Refuses a step that is out of bounds."""
        self._judged = judged = _Judged(backend, step, losses, counts)
        return lambda norm: judged.by(self._bounds, norm) is None

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint."""
        self._is_first = backend.rank == 0
        self._judged = None
        if self._is_first:
            self._lines.cut_after(progress.step or BEFORE_ALL)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Remember the step, or tell why it was skipped.

        Raises:
            RollBack: it was the last that patience was had with; on every rank alike.
            NumericalError: that, and there have been as many rollbacks as there may be.
        """
        del backend
        judged, self._judged = self._judged, None
        if judged is None:
            self._pass_over(progress.step - 1)
            return
        # Where fp16's scaling has overflowed nobody has asked; the norm says nothing then.
        found = judged.found if judged.is_asked else judged.by(self._bounds, None)
        if found is not None:
            self._skip(found)
        elif not record.skipped:
            self._row = ()
            if judged.targets:
                self._bounds.take_in(judged.loss, judged.norm)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Bring the file to the disk."""
        del backend, progress
        if self._is_first:
            self._lines.sync()

    def state_dict(self) -> dict[str, Any]:
        """The medians' values, the skipped steps so far in a row, and the rollbacks."""
        if self._is_first:
            self._lines.sync()
        row, avoided = ([asdict(each) for each in of] for of in (self._row, self._avoided))
        return {**self._bounds.state_dict(), "row": row, "avoided": avoided}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; empty where the run was begun without a guard."""
        self._bounds.load_state_dict(state)
        self._row = tuple(Skipped(**each) for each in state.get("row", ()))
        self._avoided = tuple(Avoided.from_json(each) for each in state.get("avoided", ()))

    def go_on(self, asked: RollBack, step: int) -> None:
        """After everything was put back to ``step``: avoid what led to the rollback.

        What earlier rollbacks avoid stays avoided, also where the checkpoint is older than they.
        """
        self._avoided = (*asked.before, Avoided(step, asked.steps[-1].step + 1, asked.steps))

    def lasting(self) -> tuple[Avoided, ...]:
        """What no rollback takes back: the steps that are avoided."""
        return self._avoided

    def keep(self, lasting: tuple[Avoided, ...]) -> None:
        """Take it over, after everything was put back."""
        self._avoided = lasting

    @property
    def first_in_doubt(self) -> int | None:
        """The first of the steps now skipped in a row, from 0: a rollback goes to before it."""
        return self._row[0].step if self._row else None

    def _skip(self, found: Skipped) -> None:
        self._row += (found,)
        self._write(found, avoided=False)
        if self._is_first:
            where = self._lines.path
            _log.warning("step %d was skipped: %s; see %s", found.step + 1, found.why, where)
        if len(self._row) < self._config.patience:
            return
        if len(self._avoided) >= self._config.rollbacks:
            raise NumericalError(self._given_up())
        raise RollBack(self._row, self._avoided)

    def _given_up(self) -> str:
        steps = ", ".join(str(each.step + 1) for each in self._row)
        return (
            f"steps {steps} were skipped in a row: {self._row[-1].why}; there have been "
            f"{len(self._avoided)} rollbacks of {self._config.rollbacks} (guard.rollbacks). "
            f"{self._lines.path} tells their rows; a lower lr, a longer warm-up or another "
            "precision are the usual remedies"
        )

    def _pass_over(self, step: int) -> None:
        """A line of an avoided step: what was found when it was tried, if it was."""
        known = [k for each in self._avoided for k in each.known if k.step == step]
        unknown = Skipped(step, "between the checkpoint and the steps skipped", None, None, None)
        self._write(known[-1] if known else unknown, avoided=True)

    def _write(self, found: Skipped, *, avoided: bool) -> None:
        if not self._is_first:
            return
        told = asdict(found) | {"step": found.step + 1}
        rows = [dict(row) for row in self._rows(found.step)]
        self._lines.append({"step": told.pop("step"), "avoided": avoided, **told, "rows": rows})


class _Judged:
    """The numbers of one step: summed over the ranks and read once, when they are asked for."""

    def __init__(self, backend: Backend, step: int, losses: "Tensor", counts: "Tensor") -> None:
        self._backend = backend
        self._step = step
        self._losses = losses
        self._counts = counts
        self.is_asked = False
        self.loss = self.norm = self.targets = 0.0
        self.found: Skipped | None = None

    def by(self, bounds: Bounds, norm: "Tensor | float | None") -> Skipped | None:
        """What is wrong with it; without a ``norm`` only the loss counts. Every rank calls it."""
        import torch

        device, world = self._backend.device, self._backend.world
        given = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float64, device=device)
        mine = torch.stack([self._losses[0].double(), given.reshape(())])
        numbers = torch.cat([self._backend.sum_over_ranks(mine), self._counts[:1]])
        total, norms, self.targets = numbers.tolist()
        self.loss, self.norm = total / max(1.0, self.targets), norms / world
        looked_at = None if norm is None else self.norm
        self.found = bounds.check(self._step, self.loss, looked_at)
        self.is_asked = True
        return self.found
