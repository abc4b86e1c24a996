"""Adaptations: what in the model trains. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.adaptation.full import FullTraining
from engine.adaptation.lora import LowRank

AdaptationConfig = Annotated[FullTraining | LowRank, Field(discriminator="name")]

__all__ = ["AdaptationConfig", "FullTraining", "LowRank"]
