"""Learning rates as pure functions of the step: a linear warm-up, then one of three shapes."""

from abc import ABC, abstractmethod
from math import cos, pi
from typing import Literal

from pydantic import Field, field_validator

from configs.errors import RecipeError
from configs.schema import Config


class _WarmedUp(Config, ABC):
    """The part that the schedules share; they differ in ``_after`` alone."""

    warmup: int | float = Field(0, ge=0, description="a whole number of steps, or a share below 1")

    @field_validator("warmup", mode="after")
    @classmethod
    def _share_or_steps(cls, value: float) -> int | float:
        if isinstance(value, float) and value >= 1:
            msg = f"warmup {value} is neither a share below 1 nor a whole number of steps"
            raise ValueError(msg)
        return value

    def warmup_steps(self, steps: int) -> int:
        """How many of ``steps`` rise; RecipeError if that is more than there are."""
        if isinstance(self.warmup, float):
            return round(self.warmup * steps)
        if self.warmup > steps:
            msg = f"schedule: warmup of {self.warmup} steps in a run of {steps}"
            raise RecipeError(msg)
        return self.warmup

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate for the step after ``step`` finished ones, of ``steps``.

        It rises from ``1 / warm-up`` to 1, so that no step is spent at rate 0.
        """
        rising = self.warmup_steps(steps)
        if step < rising:
            return (step + 1) / rising
        return self._after((step - rising) / max(1, steps - rising))

    @abstractmethod
    def _after(self, share: float) -> float:
        """Multiplier once the warm-up is over; ``share`` of the rest of the run is done."""


class Linear(_WarmedUp):
    """Falls in a straight line to ``end`` at the end of the run."""

    name: Literal["linear"] = "linear"
    end: float = Field(0.0, ge=0, le=1, description="share of the peak rate reached at the end")

    def _after(self, share: float) -> float:
        return 1 - (1 - self.end) * share


class Cosine(_WarmedUp):
    """Falls along half a cosine to ``end`` (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    end: float = Field(0.0, ge=0, le=1, description="share of the peak rate reached at the end")

    def _after(self, share: float) -> float:
        return self.end + (1 - self.end) * (1 + cos(pi * share)) / 2


class Constant(_WarmedUp):
    """Stays at the peak."""

    name: Literal["constant"] = "constant"

    def _after(self, share: float) -> float:
        del share
        return 1.0
