"""What is measured now and then while a run trains: when it is due, told, owed, and known."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import RecipeError
from engine import faults
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.protocols import Backend, Hook, Progress, StepRecord


class Measured:
    """The last numbers of every kind, by path: ``validation/domain/loss``. Equal on all ranks."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, float]] = {}

    def tell(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Take in numbers, which may nest by name; other values are left out."""
        self._found |= {path: (step, value) for path, value in _flat(kind, numbers)}

    def at(self, path: str, step: int) -> float | None:
        """The number if it was measured after that step, None if it was not.

        Raises:
            RecipeError: its set or probe has been measured, but there is no such number.
        """
        known = self._found.get(path)
        if known is not None:
            return known[1] if known[0] == step else None
        of_the_same = "/".join([*path.split("/")[:2], ""])
        beside = [name for name in self._found if name.startswith(of_the_same)]
        if beside:
            msg = f"'{path}' is not measured; there are {', '.join(beside)}"
            raise RecipeError(msg)
        return None

    def forget(self) -> None:
        """Steps are taken back: nothing is known any more."""
        self._found.clear()


def _flat(prefix: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _flat(path, value)
        elif isinstance(value, int | float):
            yield path, float(value)


class MeasuringHook(Hook, ABC):
    """Measures before the first step, at the steps that are due, and at the end.

    When the run is to end early it is broken off between two batches, without a line, and made
    good by the resumed run, before its first step. All ranks come to the same numbers; rank 0
    writes them.

    Attributes:
        kind: names the numbers for the sinks and in ``Measured``.
    """

    kind: str

    def __init__(
        self,
        path: Path,
        steps: int,
        sinks: Sequence[Sink] = (),
        goes_on: Callable[[int], bool] = lambda _: True,
        measured: Measured | None = None,
    ) -> None:
        """Set up.

        Args:
            path: of the file of lines.
            steps: the run's last step.
            sinks: who gets the numbers, too.
            goes_on: (step) -> whether the run is to go on; asked before each turn, on all ranks.
            measured: where every rank keeps them for the hooks behind this one.
        """
        self._lines = JsonLines(path)
        self._steps = steps
        self._sinks = tuple(sinks)
        self._goes_on = goes_on
        self._measured = measured or Measured()
        self._is_owed = False

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether something is measured after this step, which is neither the first nor last."""

    @abstractmethod
    def measure(
        self, backend: Backend, step: int, may_turn: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The numbers, by name; every rank calls it. None: ``may_turn`` said no.

        ``may_turn`` is asked by all ranks before each of their batches.
        """

    def line(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """How they stand in the file, beside the step."""
        return dict(numbers)

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint; measure where training starts or was ended."""
        if backend.rank == 0:
            # What is owed may have been measured by a resumed run that was killed before it saved.
            kept = progress.step - 1 if self._is_owed else progress.step
            self._lines.cut_after(kept if progress.step else BEFORE_ALL)
        if progress.step == 0 or self._is_owed:
            self._look(backend, progress.step)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Measure if it is time."""
        del record
        if progress.step == self._steps or self.is_due(progress.step):
            self._look(backend, progress.step)

    def state_dict(self) -> dict[str, Any]:
        """Whether the measurement at this step is still to be made."""
        return {"is_owed": self._is_owed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._is_owed = state.get("is_owed", False)
        self._measured.forget()

    def _look(self, backend: Backend, step: int) -> None:
        numbers = self.measure(backend, step, lambda: self._may_turn(step))
        self._is_owed = numbers is None
        if numbers is None:
            return
        self._measured.tell(self.kind, step, numbers)
        if backend.rank == 0:
            self._lines.append({"step": step, **self.line(numbers)})
            for sink in self._sinks:
                sink.write(self.kind, step, numbers)

    def _may_turn(self, step: int) -> bool:
        faults.reached(self.kind, step=step)
        return self._goes_on(step)
