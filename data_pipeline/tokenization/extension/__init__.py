"""New words for a tokenizer: which ones, how they get in, and what they save."""

from data_pipeline.tokenization.extension.extend import Candidate, Extended, extend, rank
from data_pipeline.tokenization.extension.measure import Measure, Saved
from data_pipeline.tokenization.extension.spelling import Spelling
from data_pipeline.tokenization.extension.words import count_words

__all__ = [
    "Candidate",
    "Extended",
    "Measure",
    "Saved",
    "Spelling",
    "count_words",
    "extend",
    "rank",
]
