"""SWA: the plain mean of weights along the way (Izmailov et al., 2018)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from torch import Tensor


class StochasticAverage(Config):
    """The mean of the weights after step ``start`` and every ``every`` steps from there on.

    Until then it is the weights themselves. It wants a rate that stays up: schedule constant, or a
    fall to no less than a good part of the peak.
    """

    KEYS: ClassVar[tuple[str, ...]] = ("swa",)

    name: Literal["swa"] = "swa"
    start: int | float = Field(
        0.75, ge=0, description="a whole number of steps that are taken, or a share below 1"
    )
    every: PositiveInt = Field(1, description="steps between two weights that enter the mean")

    @field_validator("start", mode="after")
    @classmethod
    def _share_or_steps(cls, value: float) -> int | float:
        if isinstance(value, float) and value >= 1:
            msg = f"start {value} is neither a share below 1 nor a whole number of steps"
            raise ValueError(msg)
        return value

    def build(self, steps: int) -> "MeanWeights":
        """The average that the optimizer keeps in a run of ``steps``."""
        start = round(self.start * steps) if isinstance(self.start, float) else self.start
        if start > steps:
            msg = f"averaging swa: start {start} in a run of {steps} steps; give at most that"
            raise RecipeError(msg)
        return MeanWeights(max(1, start), self.every)


class MeanWeights:
    """A WeightAverage: which step it is stands in the optimizer's own state."""

    keys = StochasticAverage.KEYS

    def __init__(self, start: int, every: int) -> None:
        self._start = start
        self._every = every

    def start(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Begin at the present value."""
        state["swa"].copy_(parameter.detach())

    def update(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Take in the present value if it is its turn; without looking at the step on the host."""
        since = state["step"] - self._start
        number = (since / self._every).floor() + 1
        is_due = (since % self._every == 0) | (since < 0)
        share = is_due / number.clamp(min=1)
        state["swa"].lerp_(parameter.detach().float(), share)
