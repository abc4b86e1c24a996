"""Adaptations: what in the model trains. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.adaptation.adapter import Adapter
from engine.adaptation.bitfit import BiasOnly
from engine.adaptation.frozen_layers import FrozenLayers
from engine.adaptation.full import FullTraining
from engine.adaptation.lora import LowRank
from engine.adaptation.prefix import Prefix
from engine.adaptation.prompt import Prompt

AdaptationConfig = Annotated[
    FullTraining | LowRank | BiasOnly | FrozenLayers | Adapter | Prefix | Prompt,
    Field(discriminator="name"),
]

__all__ = [
    "AdaptationConfig",
    "Adapter",
    "BiasOnly",
    "FrozenLayers",
    "FullTraining",
    "LowRank",
    "Prefix",
    "Prompt",
]
