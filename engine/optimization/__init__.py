"""Optimizers, schedules and parameter groups. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.optimization.adamw import AdamW
from engine.optimization.lion import Lion
from engine.optimization.muon import Muon
from engine.optimization.schedules import (
    Constant,
    Cosine,
    Infinite,
    Linear,
    Triangular,
    WarmupStableDecay,
)

OptimizerConfig = Annotated[AdamW | Lion | Muon, Field(discriminator="name")]
ScheduleConfig = Annotated[
    Linear | Cosine | Constant | Triangular | WarmupStableDecay | Infinite,
    Field(discriminator="name"),
]

__all__ = [
    "AdamW",
    "Constant",
    "Cosine",
    "Infinite",
    "Linear",
    "Lion",
    "Muon",
    "OptimizerConfig",
    "ScheduleConfig",
    "Triangular",
    "WarmupStableDecay",
]
