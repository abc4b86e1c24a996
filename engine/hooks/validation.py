"""Held-out loss during training, on the same batches with the same masks each time."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from configs.errors import NumericalError
from engine import faults
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.protocols import Backend, Batch, Hook, Progress, StepRecord


class ValidationHook(Hook):
    """Writes ``validation.jsonl``: before the first step, every ``every`` steps, and at the end.

    A line: step, and for each set its mean loss over ``targets`` predictions. The batches of a set
    are split over the ranks, so their number changes the time it takes and not what is measured.

    When the run is to end early it is broken off between two batches, without a line, and made
    good by the resumed run, before its first step.
    """

    name = "validation"

    def __init__(
        self,
        path: Path,
        sets: Mapping[str, Sequence[Batch]],
        every: int,
        steps: int,
        sinks: Sequence[Sink] = (),
        goes_on: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Set up.

        Args:
            path: the file.
            sets: every batch of each set, the same on all ranks, already masked.
            every: steps between two lines.
            steps: the run's last step.
            sinks: who gets the numbers, too.
            goes_on: (step) -> whether the run is to go on; asked before each turn, on all ranks.
        """
        self._lines = JsonLines(path)
        self._sets = {name: list(batches) for name, batches in sets.items()}
        self._every = every
        self._steps = steps
        self._sinks = tuple(sinks)
        self._goes_on = goes_on
        self._is_owed = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint; measure where training starts or was ended."""
        if backend.rank == 0:
            # What is owed may have been measured by a resumed run that was killed before it saved.
            kept = progress.step - 1 if self._is_owed else progress.step
            self._lines.cut_after(kept if progress.step else BEFORE_ALL)
        if progress.step == 0 or self._is_owed:
            self._measure(backend, progress.step)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Measure if it is time; NumericalError if a held-out loss is not finite."""
        del record
        if progress.step % self._every == 0 or progress.step == self._steps:
            self._measure(backend, progress.step)

    def state_dict(self) -> dict[str, Any]:
        """Whether the measurement at this step is still to be made."""
        return {"is_owed": self._is_owed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._is_owed = state.get("is_owed", False)

    def _measure(self, backend: Backend, step: int) -> None:
        numbers: dict[str, Any] = {}
        for name, batches in self._sets.items():
            found = held_out_loss(backend, batches, lambda: self._may_turn(step))
            if found is None:
                self._is_owed = True
                return
            numbers[name] = found
        self._is_owed = False
        if bad := [name for name, found in numbers.items() if found["loss"] is None]:
            msg = f"step {step}: the held-out loss on {bad[0]} is not finite, or it has no targets"
            raise NumericalError(msg)
        if backend.rank == 0:
            self._lines.append({"step": step, "sets": numbers})
            for sink in self._sinks:
                sink.write("validation", step, numbers)

    def _may_turn(self, step: int) -> bool:
        faults.reached("validation", step=step)
        return self._goes_on(step)


def held_out_loss(
    backend: Backend, batches: Sequence[Batch], goes_on: Callable[[], bool] = lambda: True
) -> dict[str, Any] | None:
    """{loss: mean over all targets or None if not finite, targets}; every rank must call it.

    All ranks run equally many batches, since ZeRO-3 needs the same graph everywhere; one that
    runs out repeats the last batch and leaves the answer out. None: ``goes_on``, which is asked
    before each of them, said no.
    """
    import torch

    total = torch.zeros(2, dtype=torch.float64, device=backend.device)
    for turn in range(ceil(len(batches) / backend.world)):
        if not goes_on():
            return None
        index = turn * backend.world + backend.rank
        batch = batches[min(index, len(batches) - 1)]
        loss = backend.evaluate(batch).total.detach().double()
        if index < len(batches):
            total += torch.stack([loss, torch.full_like(loss, batch.count)])
    summed, targets = backend.sum_over_ranks(total).tolist()
    mean = summed / targets if targets else float("nan")
    return {"loss": mean if torch.isfinite(torch.tensor(mean)) else None, "targets": int(targets)}
