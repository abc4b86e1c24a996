"""Optimizers, schedules and parameter groups. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.optimization.adamw import AdamW
from engine.optimization.schedules import Constant, Cosine, Linear

OptimizerConfig = AdamW
ScheduleConfig = Annotated[Linear | Cosine | Constant, Field(discriminator="name")]

__all__ = ["AdamW", "Constant", "Cosine", "Linear", "OptimizerConfig", "ScheduleConfig"]
