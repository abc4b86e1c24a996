"""Documents that are like a target, chosen from sources. A method is one file and its name here."""

from typing import Annotated

from pydantic import Field

from data_pipeline.selection.method import Method, Scorer
from data_pipeline.selection.ngram import NgramWeights
from data_pipeline.selection.perplexity import PerplexityDifference
from data_pipeline.selection.tfidf import TfidfSimilarity

AnyMethod = Annotated[
    TfidfSimilarity | NgramWeights | PerplexityDifference,
    Field(discriminator="name"),
]

__all__ = [
    "AnyMethod",
    "Method",
    "NgramWeights",
    "PerplexityDifference",
    "Scorer",
    "TfidfSimilarity",
]
