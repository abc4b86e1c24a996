"""Averages of the weights. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.averaging.ema import MovingAverage
from engine.averaging.swa import StochasticAverage

AveragingConfig = Annotated[MovingAverage | StochasticAverage, Field(discriminator="name")]

__all__ = ["AveragingConfig", "MovingAverage", "StochasticAverage"]
