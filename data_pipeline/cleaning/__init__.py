"""What happens to a text between its source and the tokenizer."""

from data_pipeline.cleaning.clean import CleanPart, CleanSide, CleanTask, clean_part
from data_pipeline.cleaning.exact_duplicates import first_occurrences, text_digest
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.cleaning.split import SIDES, Side, Split, Splitter

__all__ = [
    "SIDES",
    "CleanPart",
    "CleanSide",
    "CleanTask",
    "Side",
    "Split",
    "Splitter",
    "clean_part",
    "first_occurrences",
    "normalise",
    "text_digest",
]
