"""Which steps are out of bounds: not finite, or far above the median of the steps before."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from configs.schema import Config
from engine.leaving import GoBack


class GuardConfig(Config):
    """Steps whose loss or gradient is out of bounds are skipped; after too many, rolled back.

    Without ``spike`` and ``norm_spike`` only what is not finite is out of bounds. A rollback goes
    to the newest checkpoint from before the first of ``patience`` steps skipped in a row, and
    passes over all rows from there to the last of them (Chowdhery et al., 2022, section 5.1).
    """

    spike: float | None = Field(
        None,
        gt=1,
        allow_inf_nan=False,
        description="a loss is out of bounds above so many times the median; absent: no finite one",
    )
    norm_spike: float | None = Field(
        None, gt=1, allow_inf_nan=False, description="the same of the gradient norm, unclipped"
    )
    window: PositiveInt = Field(
        100, description="taken steps that the median is of; with fewer no finite value is a spike"
    )
    patience: PositiveInt = Field(5, description="steps skipped in a row that lead to a rollback")
    rollbacks: NonNegativeInt = Field(2, description="how many there may be before the run ends")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step that was not taken.

    Attributes:
        step: counted from 0.
        why: for people.
        loss: mean over the targets of the global batch; None if it is not finite.
        norm: of the gradient, before clipping; None if it is not finite.
        threshold: what loss or norm may be at most; None if it is just not finite.
    """

    step: int
    why: str
    loss: float | None
    norm: float | None
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Avoided:
    """Steps from ``start`` up to, not including, ``stop`` that a rollback passes over.

    Attributes:
        known: those among them that had been skipped and led to the rollback.
    """

    start: int
    stop: int
    known: tuple[Skipped, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Avoided":
        """Back from ``asdict``, by way of JSON."""
        known = tuple(Skipped(**each) for each in values["known"])
        return cls(values["start"], values["stop"], known)


class RollBack(GoBack):
    """``steps`` were skipped in a row: go back to before the first, and avoid them all.

    Attributes:
        steps: in order.
        before: the rollbacks that came before this one.
    """

    def __init__(self, steps: tuple[Skipped, ...], before: tuple[Avoided, ...]) -> None:
        first, last = steps[0].step + 1, steps[-1].step + 1
        why = f"steps {first} to {last} were skipped: {steps[-1].why}"
        super().__init__(why, "guard", steps[0].step, steps[-1].step)
        self.steps = steps
        self.before = before

    def missing(self) -> str:
        """What to do where there is no checkpoint from before."""
        return f"{super().missing()}, or give the guard more patience"

    def onward(self, step: int) -> str:
        """Without the rows that led to it."""
        gone = f"on without the rows of steps {step + 1} to {self.last + 1}"
        return f"{super().onward(step)}, and {gone}"


class Median:
    """Of the last ``size`` values that were added."""

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        self.values: deque[float] = deque(values, maxlen=size)
        self._size = size

    def add(self, value: float) -> None:
        """Take in a value; the oldest one goes."""
        self.values.append(value)

    def times(self, ratio: float | None) -> float | None:
        """``ratio`` times the median; None without a ratio, or before ``size`` values are there."""
        if ratio is None or len(self.values) < self._size:
            return None
        return ratio * median(self.values)


class Bounds:
    """What loss and gradient norm of a step may be, by those of the steps that were taken."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses = Median(config.window)
        self._norms = Median(config.window)

    def check(self, step: int, loss: float, norm: float | None) -> Skipped | None:
        """What is wrong with a step, None if it may be taken; ``norm`` None: that is not known."""
        most_loss = self._losses.times(self._config.spike)
        most_norm = self._norms.times(self._config.norm_spike)
        why, threshold = "", None
        if not isfinite(loss):
            why = f"the loss is {loss}"
        elif norm is not None and not isfinite(norm):
            why = "the gradient is not finite"
        elif most_loss is not None and loss > most_loss:
            why, threshold = f"the loss {loss:.5g} is more than {most_loss:.5g}", most_loss
        elif norm is not None and most_norm is not None and norm > most_norm:
            why, threshold = f"the gradient norm {norm:.5g} is more than {most_norm:.5g}", most_norm
        if not why:
            return None
        return Skipped(step, why, _finite(loss), _finite(norm), threshold)

    def take_in(self, loss: float, norm: float) -> None:
        """A step was taken."""
        self._losses.add(loss)
        self._norms.add(norm)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; floats come back as they were."""
        return {"losses": list(self._losses.values), "norms": list(self._norms.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; without it, begin anew."""
        self._losses = Median(self._config.window, state.get("losses", ()))
        self._norms = Median(self._config.window, state.get("norms", ()))


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
