"""Forgetting: a held-out loss against the base's, its noise floor, and graded actions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from engine.hooks.noise import HeldOut, measured_base
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.leaving import Finish, GoBack, GoOn, Leave
from engine.protocols import Backend, Hook, Progress, StepRecord

_log = logging.getLogger(__name__)


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

    def __init__(  # noqa: PLR0913, PLR0917 -- what is watched, what it may change, who is told
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
        self._said: str | None = None
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
            found = measured_base(
                backend, self._held_out, self._config, lambda: self._may_turn(step)
            )
            if found is not None:
                self._base, self._noise = found.loss, found.noise
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
        numbers = self._rungs.due(multiple)
        for action in most_decisive([above[number] for number in numbers]):
            done = self._act(action, step, multiple)
            taken.append(done)
            if "refused" in done:
                self._rungs.give_back(next(n for n in numbers if above[n] is action))
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
                then, numbers["refused"] = f"no more replay: {error}", str(error)
        if "refused" not in numbers:
            self._done[action.do] += 1
        if self._is_first and then != self._said:
            _log.warning("%s: %s", why, then)
        # What is refused again and again for one reason is said once.
        self._said = then if "refused" in numbers else None
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
