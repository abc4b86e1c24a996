"""Penalties: what keeps old knowledge. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.penalties.distillation import Distillation
from engine.penalties.ewc import ElasticWeights
from engine.penalties.l2_sp import StartingPoint

PenaltyConfig = Annotated[
    StartingPoint | ElasticWeights | Distillation, Field(discriminator="name")
]

__all__ = ["Distillation", "ElasticWeights", "PenaltyConfig", "StartingPoint"]
