"""Forgetting: a held-out loss against the base's, its noise floor, and graded actions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import NumericalError, RecipeError
from engine.forgetting import (
    Action,
    Eased,
    ForgettingConfig,
    LowerRate,
    MoreReplay,
    NoiseFloor,
    Rungs,
    StepBack,
    StopEarly,
    most_decisive,
    rate,
)
from engine.hooks.measured import Measured
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.hooks.validation import held_out_loss, turns
from engine.leaving import Finish, GoBack, GoOn, Leave
from engine.protocols import Backend, Batch, Hook, Progress, StepRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The set that must not be forgotten.

    Attributes:
        batches: (number of the draw) -> its rows with their masks; 0: those of every measurement.
        rows: the same rows as those of draw 0, each as a source of its own.
    """

    batches: Callable[[int], Sequence[Batch]]
    rows: Callable[[], Sequence[Batch]]


Raise = Callable[[int, str, float], None]
"""(step, source, factor): raises a source's weight behind a step; RecipeError if that is idle."""


@dataclass(frozen=True, slots=True)
class _WentBack:
    """A rollback: decided after step ``at``, to the checkpoint of step ``to``."""

    at: int
    to: int
    multiple: float
    factor: float


class Back(GoBack):
    """Forgetting asks for a rollback."""

    def __init__(self, why: str, most: int, at: int, multiple: float, factor: float) -> None:
        super().__init__(why, ForgettingHook.name, most, at - 1)
        self.at = at
        self.multiple = multiple
        self.factor = factor

    def onward(self, step: int) -> str:
        """Back, with a lower rate."""
        return f"{super().onward(step)}, and on with {self.factor:g} times the learning rate"


class ForgettingHook(Hook):
    """Writes ``forgetting.jsonl``, a line for each measurement of the set, and acts.

    A line: step, loss, change (the loss minus the base's: the curve), low and high (the change less
    and plus the noise floor), floor, multiple (the change in floors), rate (what the learning rate
    is multiplied by from here on), done (how often each action was taken so far) and actions: those
    taken here, and a rollback that led here, with its numbers.

    Stands behind the validation and before the checkpoints; its state is in each of them, so that a
    resumed run decides alike. All ranks decide by the same numbers.
    """

    name = "forgetting"

    def __init__(
        self,
        config: ForgettingConfig,
        path: Path,
        held_out: HeldOut,
        measured: Measured,
        raise_source: Raise,
        sinks: Sequence[Sink] = (),
        may_turn: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Set up.

        Args:
            config: what the recipe says.
            path: of ``forgetting.jsonl``.
            held_out: the set's rows.
            measured: where the validation tells its loss.
            raise_source: changes the data for ``more_replay``.
            sinks: get the numbers of each line, too, as kind ``forgetting``.
            may_turn: (step) -> whether the run is to go on; asked before each turn, on all ranks.
        """
        self._config = config
        self._lines = JsonLines(path)
        self._held_out = held_out
        self._measured = measured
        self._raise = raise_source
        self._sinks = tuple(sinks)
        self._may_turn = may_turn
        self._is_first = False
        self._went_back: tuple[_WentBack, ...] = ()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._base: float | None = None
        self._noise: NoiseFloor | None = None
        self._seen: int | None = None
        self._within = 0
        self._rungs = Rungs(
            tuple(each.floors for each in self._config.above), self._config.patience
        )
        self._eased: list[Eased] = []
        self._done: dict[str, int] = {each.do: 0 for each in self._config.above}
        self._told = 0
        self._ended = ""
        self._goes_on_at: int | None = None

    def rate(self, step: int) -> float:
        """What the learning rate of the step after ``step`` finished ones is multiplied by."""
        back = [Eased(each.to, each.factor) for each in self._went_back]
        return rate([*self._eased, *back], step)

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint; measure the noise where training begins.

        The base is the model as this stage finds it, also where it goes on from an import.

        Raises:
            NumericalError: the base's loss is not finite, or there is no noise at all.
        """
        self._is_first = backend.rank == 0
        step = progress.step
        if self._is_first:
            kept = step if self._seen == step else step - 1
            self._lines.cut_after(kept if step else BEFORE_ALL)
        if self._base is None:
            self._measure_base(backend, step)
        self._look(step)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Draw the curve if the set was measured after this step, and act.

        Raises:
            Back: a rollback is due.
            NumericalError: one is due, and there have been as many as there may be.
        """
        del backend, record
        self._look(progress.step)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Bring the file to the disk."""
        del backend, progress
        if self._is_first:
            self._lines.sync()

    def wants_saved(self, step: int) -> bool:
        """Whether the state after this step, which is the present one, must be saved."""
        return self._goes_on_at == step or bool(self._ended)

    def leaves(self, progress: Progress) -> Leave | None:
        """Why the loop is to be left now that the state is saved."""
        if self._ended:
            return Finish(progress.step, self._ended)
        if self._goes_on_at == progress.step:
            self._goes_on_at = None
            return GoOn(progress.step)
        return None

    @property
    def in_doubt(self) -> int | None:
        """A rollback goes to the newest checkpoint up to this step; None: there will be none."""
        can_go_back = any(isinstance(each, StepBack) for each in self._config.above)
        return self._within if can_go_back else None

    def state_dict(self) -> dict[str, Any]:
        """The base, its noise, and all that was decided."""
        if self._is_first:
            self._lines.sync()
        return {
            "base": self._base,
            "noise": asdict(self._noise) if self._noise else None,
            "seen": self._seen,
            "within": self._within,
            "rungs": self._rungs.state_dict(),
            "eased": [asdict(each) for each in self._eased],
            "went_back": [asdict(each) for each in self._went_back],
            "told": self._told,
            "done": dict(self._done),
            "ended": self._ended,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self._begin_anew()
        self._went_back = tuple(_WentBack(**each) for each in state.get("went_back", ()))
        if not state:
            return
        self._base = state["base"]
        self._noise = NoiseFloor(**state["noise"]) if state["noise"] else None
        self._seen, self._within = state["seen"], state["within"]
        self._rungs.load_state_dict(state["rungs"])
        self._eased = [Eased(**each) for each in state["eased"]]
        self._done |= state["done"]
        self._told, self._ended = state["told"], state["ended"]

    def lasting(self) -> tuple[_WentBack, ...]:
        """What no rollback takes back: the rollbacks."""
        return self._went_back

    def keep(self, lasting: tuple[_WentBack, ...]) -> None:
        """Take it over, after everything was put back."""
        self._went_back = lasting

    def go_on(self, asked: Back, step: int) -> None:
        """After everything was put back to ``step``: on at a lower rate."""
        self._went_back += (_WentBack(asked.at, step, asked.multiple, asked.factor),)

    def _measure_base(self, backend: Backend, step: int) -> None:
        """The base's loss and noise; neither, if the run is to end first."""

        def may_turn() -> bool:
            return self._may_turn(step)

        given = self._held_out.batches(0)
        losses: list[float | None] = []
        for number in range(1 + self._config.draws):
            batches = given if number == 0 else self._held_out.batches(number)
            if number == 1 and _same(given, batches):
                break
            found = held_out_loss(backend, batches, may_turn)
            if found is None:
                return
            losses.append(found["loss"])
        finite = [loss for loss in losses if loss is not None]
        if len(finite) < len(losses):
            msg = (
                f"step {step}: the loss of the base on {self._config.set} is not finite, or it "
                "has no targets"
            )
            raise NumericalError(msg)
        sigmas = self._config.sigmas
        if len(finite) > 1:
            noise = NoiseFloor.of_draws(finite[1:], sigmas)
        else:
            rows = row_losses(backend, self._held_out.rows(), may_turn)
            if rows is None:
                return
            noise = NoiseFloor.of_rows(rows.sums, rows.counts, sigmas)
        if not noise.floor > 0:
            msg = (
                f"forgetting: the loss on {self._config.set} is the same for all {noise.samples} "
                f"draws of {noise.kind}: no noise can be told; give more validation.rows"
            )
            raise NumericalError(msg)
        self._base, self._noise = finite[0], noise

    def _look(self, step: int) -> None:
        loss = self._measured.at(f"validation/{self._config.set}/loss", step)
        if loss is None or self._base is None or self._noise is None or self._seen == step:
            return
        self._seen = step
        change = loss - self._base
        multiple = change / self._noise.floor
        if change <= self._noise.floor:
            self._within = step
        above = self._config.above
        taken = [asdict(each) | {"do": "roll_back"} for each in self._went_back[self._told :]]
        for action in most_decisive([above[number] for number in self._rungs.due(multiple)]):
            taken.append(self._act(action, step, multiple))
        self._told = len(self._went_back)
        self._write(step, loss, change, taken)

    def _act(self, action: Action, step: int, multiple: float) -> dict[str, Any]:
        """Do it, and tell what was done."""
        numbers = action.model_dump(mode="json")
        why = (
            f"step {step}: the loss on {self._config.set} is {multiple:.2f} noise floors above the "
            f"base's, more than {action.floors:g}"
        )
        if isinstance(action, StepBack):
            self._go_back(action, step, multiple, why)
        then = "a warning is all that was asked for"
        if isinstance(action, LowerRate):
            self._eased.append(Eased(step, action.factor))
            then = f"the learning rate is {self.rate(step):g} times the schedule's from here on"
        elif isinstance(action, StopEarly):
            self._ended, then = why, "the stage ends here"
        elif isinstance(action, MoreReplay):
            then = f"{action.factor:g} times the weight of {action.source} from the next block on"
            try:
                self._raise(step, action.source, action.factor)
                self._goes_on_at = step
            except RecipeError as error:
                then, numbers["refused"] = f"more replay is not possible: {error}", str(error)
        if "refused" not in numbers:
            self._done[action.do] += 1
        if self._is_first:
            _log.warning("%s: %s", why, then)
        return numbers

    def _go_back(self, action: StepBack, step: int, multiple: float, why: str) -> None:
        if len(self._went_back) >= action.most:
            msg = (
                f"{why}; there have been {len(self._went_back)} rollbacks of {action.most} "
                "(forgetting, roll_back: most). A lower lr, more general text in the mixture or a "
                "penalty on the weights are the usual remedies"
            )
            raise NumericalError(msg)
        raise Back(why, self._within, step, multiple, action.factor)

    def _write(
        self, step: int, loss: float, change: float, actions: Sequence[Mapping[str, Any]]
    ) -> None:
        noise = self._noise
        if noise is None or not self._is_first:
            return
        done = dict(self._done)
        if "roll_back" in done:
            done["roll_back"] = len(self._went_back)
        numbers = {
            "change": change,
            "low": change - noise.floor,
            "high": change + noise.floor,
            "floor": noise.floor,
            "multiple": change / noise.floor,
            "rate": self.rate(step),
            "done": done,
        }
        self._lines.append({"step": step, "loss": loss, **numbers, "actions": list(actions)})
        for sink in self._sinks:
            sink.write("forgetting", step, numbers)


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Of the same rows in the same order, fp64 [rows]: summed losses, and numbers of targets."""

    sums: "NDArray[np.float64]"
    counts: "NDArray[np.float64]"


def row_losses(
    backend: Backend, batches: Sequence[Batch], may_turn: Callable[[], bool] = lambda: True
) -> RowLosses | None:
    """Losses row by row, of batches in which each row is a source; every rank must call it.

    None: ``may_turn``, which is asked before each batch, said no.
    """
    import torch

    sizes = [len(batch.source_counts) for batch in batches]
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    total = torch.zeros(2, sum(sizes), dtype=torch.float64, device=backend.device)
    for index, batch in turns(backend, batches):
        if not may_turn():
            return None
        loss = backend.evaluate(batch)
        if index < len(batches):
            part = slice(firsts[index], firsts[index] + sizes[index])
            total[0, part] = loss.by_source.double()
            total[1, part] = torch.tensor(batch.source_counts, dtype=torch.float64).to(total)
    sums, counts = backend.sum_over_ranks(total).cpu().numpy()
    return RowLosses(sums, counts)


def _same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether two draws are the same, tensor for tensor: then nothing is drawn."""
    import torch

    return all(
        torch.equal(value, right.tensors[name])
        for left, right in zip(one, other, strict=True)
        for name, value in left.tensors.items()
    )
