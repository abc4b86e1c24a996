"""Packing: which pieces of documents share a row. To add one: its file, then its name here."""

from typing import Annotated

from pydantic import Field

from data_pipeline.packing.best_fit import BestFitPacking
from data_pipeline.packing.cache import cached_plan
from data_pipeline.packing.concatenate import ConcatenatePacking
from data_pipeline.packing.packer import Packer
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText
from data_pipeline.packing.sentence_pairs import SentencePairsPacking
from data_pipeline.packing.single import SinglePacking

Packing = Annotated[
    BestFitPacking | ConcatenatePacking | SinglePacking | SentencePairsPacking,
    Field(discriminator="name"),
]

__all__ = [
    "BestFitPacking",
    "ConcatenatePacking",
    "Packer",
    "Packing",
    "PackingPlan",
    "RowShape",
    "SentencePairsPacking",
    "ShardText",
    "SinglePacking",
    "cached_plan",
]
