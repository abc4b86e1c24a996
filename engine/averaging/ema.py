"""EMA: an exponential moving average of the weights (Polyak & Juditsky, 1992).

Morales-Brogat et al. (2024) tell what it does for training, and how to choose the decay.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from configs.schema import Config

if TYPE_CHECKING:
    from torch import Tensor


class MovingAverage(Config):
    """After each step ``average = decay * average + (1 - decay) * weights``, from the start on.

    It looks back over about ``1 / (1 - decay)`` steps. It does not change what is trained.
    """

    KEYS: ClassVar[tuple[str, ...]] = ("ema",)

    name: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1, description="share of the average that a step keeps")

    def build(self, steps: int) -> "ExponentialAverage":
        """The average that the optimizer keeps; it is the same for any number of steps."""
        del steps
        return ExponentialAverage(self.decay)


class ExponentialAverage:
    """A WeightAverage: fp32 state of each partition, which begins as the weights themselves."""

    keys = MovingAverage.KEYS

    def __init__(self, decay: float) -> None:
        self._decay = decay

    def start(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Begin at the present value."""
        state["ema"].copy_(parameter.detach())

    def update(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Move towards the present value."""
        state["ema"].lerp_(parameter.detach().float(), 1 - self._decay)
