"""Masking policies: which tokens are hidden. To add one: its file, then its name here."""

from typing import Annotated

from pydantic import Field

from data_pipeline.masking.dynamic import DynamicMasking
from data_pipeline.masking.masker import Masker
from data_pipeline.masking.whole_word import WholeWordMasking

Masking = Annotated[DynamicMasking | WholeWordMasking, Field(discriminator="name")]

__all__ = ["DynamicMasking", "Masker", "Masking", "WholeWordMasking"]
