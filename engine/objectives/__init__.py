"""Objectives: what is predicted. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.objectives.clm import CausalLanguageModelling
from engine.objectives.mlm import MaskedLanguageModelling
from engine.objectives.pairs import require_fitting

ObjectiveConfig = Annotated[
    CausalLanguageModelling | MaskedLanguageModelling, Field(discriminator="name")
]

__all__ = [
    "CausalLanguageModelling",
    "MaskedLanguageModelling",
    "ObjectiveConfig",
    "require_fitting",
]
