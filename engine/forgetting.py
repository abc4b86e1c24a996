"""Forgetting against a noise floor: what a recipe says, the statistics, and which action is due."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from configs.schema import Config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.protocols import Schedule


class _Action(Config):
    floors: float = Field(
        gt=0, allow_inf_nan=False, description="due above so many times the noise floor"
    )


class Warn(_Action):
    """Say so."""

    do: Literal["warn"] = "warn"


class LowerRate(_Action):
    """The learning rate of all later steps is multiplied."""

    do: Literal["lower_rate"] = "lower_rate"
    factor: float = Field(0.5, gt=0, lt=1, description="of the learning rate")


class MoreReplay(_Action):
    """A source's weight is raised, from the next block of the mixture (1024 rows) on."""

    do: Literal["more_replay"] = "more_replay"
    source: str = Field(description="of data.sources")
    factor: float = Field(
        2.0, gt=1, allow_inf_nan=False, description="of its weight, relative to the others'"
    )


class StepBack(_Action):
    """Back to the newest checkpoint within the noise floor, and on from there at a lower rate."""

    do: Literal["roll_back"] = "roll_back"
    factor: float = Field(0.5, gt=0, lt=1, description="of the learning rate from there on")
    most: PositiveInt = Field(2, description="how often, before the run ends with an error")


class StopEarly(_Action):
    """The stage ends as finished."""

    do: Literal["stop"] = "stop"


Action = Annotated[Warn | LowerRate | MoreReplay | StepBack | StopEarly, Field(discriminator="do")]


class ForgettingConfig(Config):
    """The rise of a held-out loss above that of the model before the first step, and what to do.

    Both losses are of the same rows with the same masks. The noise floor tells how far the loss of
    a model that has forgotten nothing may lie from the base's by chance, see ``NoiseFloor``.
    """

    set: str = Field(description="of validation.sets: the one that must not be forgotten")
    draws: int = Field(
        8,
        ge=2,
        description=(
            "further draws of masks that the noise is measured by; where nothing is masked the "
            "rows take their place"
        ),
    )
    sigmas: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="the floor, in standard deviations of the noise"
    )
    patience: PositiveInt = Field(1, description="measurements above in a row until an action")
    above: tuple[Action, ...] = Field((), description="what to do; none: only the curve is drawn")

    def sources(self) -> list[str]:
        """The sources that it may raise."""
        return [each.source for each in self.above if isinstance(each, MoreReplay)]


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How far two equally good models may lie apart in a loss that is measured once.

    The curve's point is ``D = L(model, masks) - L(base, masks)``. With one fixed draw of masks it
    differs from its mean over all draws by a noise of variance ``2 s^2 (1 - r)``: ``s`` is the
    standard deviation of a loss over draws, ``r`` the correlation of the two models' losses over
    them. A model in training stays close to its base, so r is near 1; ``s`` bounds the noise
    already from r = 1/2 on. ``s`` is therefore on the safe side, it can be measured before the
    first step, and it does not move while the run goes on.

    It is estimated from ``samples`` values, so the floor is not ``sigmas * s`` but ``t * s``, with
    the quantile of Student's t that covers what ``sigmas`` cover of the normal distribution (2.43
    in place of 2 for eight draws).

    Where nothing is drawn (a causal model) the rows take the place of the masks: ``s`` is then the
    standard error of the base's loss over rows, as if other rows of the set had been taken.

    Attributes:
        kind: what was drawn: ``masks`` or ``rows``.
        deviation: s, in nats a target.
        samples: how many values it is estimated from.
        floor: in nats a target.
    """

    kind: Literal["masks", "rows"]
    deviation: float
    samples: int
    floor: float

    @classmethod
    def of_draws(cls, losses: Sequence[float], sigmas: float) -> "NoiseFloor":
        """From the base's loss under several draws of masks."""
        return cls._of("masks", stdev(losses), len(losses), sigmas)

    @classmethod
    def of_rows(
        cls, sums: "NDArray[np.float64]", counts: "NDArray[np.float64]", sigmas: float
    ) -> "NoiseFloor":
        """From the base's summed loss and number of targets of each row, fp64 [rows].

        The standard error of a ratio of two sums, by its linear part (Cochran, 1977, section 2.11).
        """
        rows, total = len(sums), counts.sum()
        residuals = sums - sums.sum() / total * counts
        deviation = sqrt(float((residuals**2).sum()) * rows / max(1, rows - 1)) / float(total)
        return cls._of("rows", deviation, rows, sigmas)

    @classmethod
    def _of(
        cls, kind: Literal["masks", "rows"], deviation: float, samples: int, sigmas: float
    ) -> "NoiseFloor":
        return cls(kind, deviation, samples, student(sigmas, samples) * deviation)


def student(sigmas: float, samples: int) -> float:
    """What covers as much of Student's t, of ``samples`` values, as ``sigmas`` of the normal."""
    from scipy import stats

    return float(stats.t.isf(stats.norm.sf(sigmas), max(1, samples - 1)))


@dataclass
class Rungs:
    """Which actions are due, from the curve in multiples of the floor.

    An action is due when the curve has lain above it for ``patience`` measurements in a row; then
    again when it has been at or below it in between, or has risen by a further floor since.

    Attributes:
        floors: of each action.
        rows: for how many measurements in a row the curve has lain above each.
        at: where the curve was when each was last due; None: it may be due again.
    """

    floors: tuple[float, ...]
    patience: int
    rows: list[int] = field(default_factory=list)
    at: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = self.rows or [0] * len(self.floors)
        self.at = self.at or [None] * len(self.floors)

    def due(self, multiple: float) -> list[int]:
        """Take in a measurement; the numbers of the actions that are due."""
        found = []
        for number, floors in enumerate(self.floors):
            if multiple <= floors:
                self.rows[number], self.at[number] = 0, None
                continue
            self.rows[number] += 1
            last = self.at[number]
            if self.rows[number] >= self.patience and (last is None or multiple >= last + 1):
                self.at[number] = multiple
                found.append(number)
        return found

    def give_back(self, number: int) -> None:
        """The action was due and could not be taken: it is due again at the next measurement."""
        self.at[number] = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"rows": list(self.rows), "at": list(self.at)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; empty: begin anew."""
        self.rows = list(state.get("rows", [0] * len(self.floors)))
        self.at = list(state.get("at", [None] * len(self.floors)))


@dataclass(frozen=True, slots=True)
class Eased:
    """The learning rate is multiplied by ``factor`` from the step after ``step`` finished ones."""

    step: int
    factor: float


def rate(eased: Sequence[Eased], step: int) -> float:
    """What the learning rate of the step after ``step`` finished ones is multiplied by."""
    factor = 1.0
    for each in eased:
        factor *= each.factor if step >= each.step else 1.0
    return factor


@dataclass(frozen=True, slots=True)
class EasedSchedule:
    """A schedule, eased by what is decided while the run is under way.

    Attributes:
        schedule: the recipe's.
        ease: (finished steps) -> what it is multiplied by.
    """

    schedule: "Schedule"
    ease: Callable[[int], float]

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate for the step after ``step`` finished ones, of ``steps``."""
        return self.schedule.factor(step, steps) * self.ease(step)


def most_decisive(actions: Sequence[Action]) -> Sequence[Action]:
    """Of several that are due at once: to stop makes all others idle, to go back all but that."""
    for kind in (StopEarly, StepBack):
        if decisive := [each for each in actions if isinstance(each, kind)]:
            return decisive[-1:]
    return actions
