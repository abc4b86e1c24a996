"""Held-out loss during training, on the same batches with the same masks each time."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from configs.errors import NumericalError
from engine.hooks.measured import Measured, MeasuringHook
from engine.hooks.numbers import Sink
from engine.protocols import Backend, Batch

Sets = Mapping[str, Sequence[Batch]]


class ValidationHook(MeasuringHook):
    """Writes ``validation.jsonl``: before the first step, every ``every`` steps, and at the end.

    A line: step, and for each set its mean loss over ``targets`` predictions and the objective's
    other measures; where the run keeps an average of the weights, the same of it under ``average``.
    The batches of a set are split over the ranks, so their number changes the time it takes and not
    what is measured.
    """

    name = kind = "validation"

    def __init__(  # noqa: PLR0913, PLR0917 -- what is measured, when, and who is told
        self,
        path: Path,
        sets: Sets,
        every: int,
        steps: int,
        sinks: Sequence[Sink] = (),
        goes_on: Callable[[int], bool] = lambda _: True,
        measured: Measured | None = None,
        measures: Sequence[str] = (),
        average: str | None = None,
    ) -> None:
        """Set up.

        Args:
            path: the file.
            sets: every batch of each set, the same on all ranks, already masked.
            every: steps between two lines.
            steps: the run's last step.
            sinks: who gets the numbers, too.
            goes_on: (step) -> whether the run is to go on; asked before each turn, on all ranks.
            measured: where every rank keeps the numbers.
            measures: names of what the objective measures beside its loss.
            average: the optimizer state whose weights are measured, too; None: none.
        """
        super().__init__(path, steps, sinks, goes_on, measured)
        self._sets = {name: list(batches) for name, batches in sets.items()}
        self._every = every
        self._measures = tuple(measures)
        self._average = average

    def is_due(self, step: int) -> bool:
        """Every so many steps."""
        return step % self._every == 0

    def measure(
        self, backend: Backend, step: int, may_turn: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """Each set's numbers; NumericalError if a held-out loss is not finite."""
        numbers = self._of_present_weights(backend, step, may_turn)
        if numbers is None or self._average is None:
            return numbers
        if step == 0:
            # The average begins as the weights.
            averages: dict[str, Any] | None = numbers
        else:
            with backend.swapped(self._average):
                averages = self._of_present_weights(backend, step, may_turn)
        if averages is None:
            return None
        return {
            name: found | {"average": _without_targets(averages[name])}
            for name, found in numbers.items()
        }

    def line(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """By set."""
        return {"sets": dict(numbers)}

    def _of_present_weights(
        self, backend: Backend, step: int, may_turn: Callable[[], bool]
    ) -> dict[str, Any] | None:
        numbers: dict[str, Any] = {}
        for name, batches in self._sets.items():
            found = held_out_loss(backend, batches, may_turn, self._measures)
            if found is None:
                return None
            numbers[name] = found
        if bad := [name for name, found in numbers.items() if found["loss"] is None]:
            msg = f"step {step}: the held-out loss on {bad[0]} is not finite, or it has no targets"
            raise NumericalError(msg)
        return numbers


def _without_targets(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name != "targets"}


def held_out_loss(
    backend: Backend,
    batches: Sequence[Batch],
    may_turn: Callable[[], bool] = lambda: True,
    measures: Sequence[str] = (),
) -> dict[str, Any] | None:
    """{loss: mean over all targets or None if not finite, its measures, targets}; on every rank.

    All ranks run equally many batches, since ZeRO-3 needs the same graph everywhere; one that
    runs out repeats the last batch and leaves the answer out. None: ``may_turn``, which is asked
    before each of them, said no.
    """
    import torch

    total = torch.zeros(2 + len(measures), dtype=torch.float64, device=backend.device)
    for index, batch in turns(backend, batches):
        if not may_turn():
            return None
        loss = backend.evaluate(batch)
        if index < len(batches):
            beside = [each.sum() for each in loss.measures] if measures else []
            sums = [loss.total.detach(), *beside, torch.tensor(float(batch.count))]
            total += torch.stack([each.double().to(total.device) for each in sums])
    summed, *others, targets = backend.sum_over_ranks(total).tolist()
    means = [each / targets if targets else float("nan") for each in (summed, *others)]
    finite = [mean if isfinite(mean) else None for mean in means]
    return {**dict(zip(("loss", *measures), finite, strict=True)), "targets": int(targets)}


def turns(backend: Backend, batches: Sequence[Batch]) -> list[tuple[int, Batch]]:
    """This rank's batches and their numbers: equally many on every rank.

    One that runs out repeats the last batch, under a number behind the last one.
    """
    last = len(batches) - 1
    mine = [
        turn * backend.world + backend.rank for turn in range(ceil(len(batches) / backend.world))
    ]
    return [(index, batches[min(index, last)]) for index in mine]
