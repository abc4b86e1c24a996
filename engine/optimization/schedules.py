"""Learning rates as pure functions of the step: a linear warm-up, then one of several shapes."""

from abc import ABC, abstractmethod
from math import cos, pi, sqrt
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.errors import RecipeError
from configs.schema import Config

_SHARE_OR_STEPS = "a whole number of steps, or a share below 1"


def _share_or_steps(name: str, value: float) -> int | float:
    if isinstance(value, float) and value >= 1:
        msg = f"{name} {value} is neither a share below 1 nor a whole number of steps"
        raise ValueError(msg)
    return value


def _in_steps(name: str, value: float, steps: int) -> int:
    """How many of ``steps``; RecipeError if that is more than there are."""
    if isinstance(value, float):
        return round(value * steps)
    if value > steps:
        msg = f"schedule: {name} of {value} steps in a run of {steps}; give fewer, or a share"
        raise RecipeError(msg)
    return value


class _WarmedUp(Config, ABC):
    """The part that the schedules share; they differ in ``_after`` alone."""

    warmup: int | float = Field(0, ge=0, description=_SHARE_OR_STEPS)
    begin: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the peak that the warm-up rises from: re-warming a model whose last "
        "rate was that (Ibrahim et al., 2024)",
    )

    @field_validator("warmup", mode="after")
    @classmethod
    def _warmup_fits(cls, value: float) -> int | float:
        return _share_or_steps("warmup", value)

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Self:
        if self.begin and not self.warmup:
            msg = f"begin {self.begin}: there is no warmup that could rise from it; give 'warmup'"
            raise ValueError(msg)
        return self

    def warmup_steps(self, steps: int) -> int:
        """How many of ``steps`` rise; RecipeError if that is more than there are."""
        return _in_steps("warmup", self.warmup, steps)

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate for the step after ``step`` finished ones, of ``steps``.

        It rises to 1 by equal amounts, the first of which is on top of ``begin``, so that no step
        is spent at rate 0.
        """
        rising = self.warmup_steps(steps)
        if step < rising:
            return 1 - (1 - self.begin) * (rising - step - 1) / rising
        return self._after(step - rising, steps - rising, steps)

    @abstractmethod
    def _after(self, step: int, rest: int, steps: int) -> float:
        """Multiplier ``step`` steps into the ``rest`` after the warm-up, of ``steps`` in all."""


class Linear(_WarmedUp):
    """Falls in a straight line to ``end`` at the end of the run."""

    name: Literal["linear"] = "linear"
    end: float = Field(0.0, ge=0, le=1, description="share of the peak rate reached at the end")

    def _after(self, step: int, rest: int, steps: int) -> float:
        del steps
        return 1 - (1 - self.end) * step / rest


class Cosine(_WarmedUp):
    """Falls along half a cosine to ``end`` (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    end: float = Field(0.0, ge=0, le=1, description="share of the peak rate reached at the end")

    def _after(self, step: int, rest: int, steps: int) -> float:
        del steps
        return _half_cosine(1.0, self.end, step / rest)


class Constant(_WarmedUp):
    """Stays at the peak."""

    name: Literal["constant"] = "constant"

    def _after(self, step: int, rest: int, steps: int) -> float:
        del step, rest, steps
        return 1.0


class Triangular(Config):
    """Slanted triangular: a short rise and a long fall, from and to 1 / ``ratio``.

    ULMFiT's (Howard & Ruder, 2018), whose settings are the defaults.
    """

    name: Literal["triangular"] = "triangular"
    rise: float = Field(0.1, gt=0, lt=1, description="share of the steps that rise")
    ratio: float = Field(
        32.0, gt=1, description="how much smaller the lowest rate is than the peak"
    )

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate for the step after ``step`` finished ones, of ``steps``."""
        cut = max(1, int(steps * self.rise))
        share = step / cut if step < cut else 1 - (step - cut) / max(1, steps - cut)
        return (1 + share * (self.ratio - 1)) / self.ratio


class WarmupStableDecay(_WarmedUp):
    """WSD: stays at the peak, and falls to ``end`` at last (Hu et al., 2024; Hägele et al., 2024).

    A run may so be made longer from any checkpoint before the fall.
    """

    name: Literal["wsd"] = "wsd"
    decay: int | float = Field(0.2, ge=0, description=f"the fall: {_SHARE_OR_STEPS}")
    shape: Literal["linear", "sqrt"] = Field(
        "sqrt", description="of the fall: a straight line, or 1 - the root of its share"
    )
    end: float = Field(0.0, ge=0, le=1, description="share of the peak rate reached at the end")

    @field_validator("decay", mode="after")
    @classmethod
    def _decay_fits(cls, value: float) -> int | float:
        return _share_or_steps("decay", value)

    def _after(self, step: int, rest: int, steps: int) -> float:
        falling = _fitting("decay", _in_steps("decay", self.decay, steps), rest, steps)
        since = step - (rest - falling)
        if since < 0:
            return 1.0
        share = since / falling
        return 1 - (1 - self.end) * (sqrt(share) if self.shape == "sqrt" else share)


class Infinite(_WarmedUp):
    """Cools down to a constant rate that any number of runs may go on with (Ibrahim et al., 2024).

    Warm-up, half a cosine down to ``constant`` over ``cooldown``, that rate, and with ``anneal`` an
    exponential fall to ``end`` at last. The next corpus re-warms from there: ``begin`` at
    ``constant``, and a warm-up.
    """

    name: Literal["infinite"] = "infinite"
    cooldown: int | float = Field(0.3, ge=0, description=_SHARE_OR_STEPS)
    constant: float = Field(0.3, gt=0, le=1, description="share of the peak rate that is kept")
    anneal: int | float | None = Field(
        None, ge=0, description=f"{_SHARE_OR_STEPS}; absent: a later run goes on from here"
    )
    end: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the peak reached by annealing; absent: a tenth of ``constant``",
    )

    @field_validator("cooldown", "anneal", mode="after")
    @classmethod
    def _phases_fit(cls, value: float | None) -> int | float | None:
        return value if value is None else _share_or_steps("cooldown or anneal", value)

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.end is not None and self.anneal is None:
            msg = "'end' is reached by annealing, and 'anneal' is absent; give it, or remove 'end'"
            raise ValueError(msg)
        if self.end is not None and self.end > self.constant:
            msg = f"end {self.end} is above constant {self.constant}: annealing falls"
            raise ValueError(msg)
        return self

    def _after(self, step: int, rest: int, steps: int) -> float:
        cooling = _in_steps("cooldown", self.cooldown, steps)
        falling = _in_steps("anneal", self.anneal or 0, steps)
        _fitting("cooldown and anneal", cooling + falling, rest, steps)
        if step < cooling:
            return _half_cosine(1.0, self.constant, step / cooling)
        since = step - (rest - falling)
        if falling and since >= 0:
            end = self.constant / 10 if self.end is None else self.end
            share: float = (end / self.constant) ** (since / falling)
            return self.constant * share
        return self.constant


def _half_cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * (1 + cos(pi * share)) / 2


def _fitting(name: str, wanted: int, rest: int, steps: int) -> int:
    """``wanted`` steps; RecipeError if the warm-up leaves fewer."""
    if wanted > rest:
        msg = (
            f"schedule: {name} of {wanted} steps after a warmup of {steps - rest} in a run of "
            f"{steps}; shorten one of them"
        )
        raise RecipeError(msg)
    return wanted
