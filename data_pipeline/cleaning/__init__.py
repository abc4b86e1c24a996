"""What happens to a text between its source and the tokenizer."""

from data_pipeline.cleaning.clean import CleanPart, CleanSide, CleanTask, clean_part
from data_pipeline.cleaning.exact_duplicates import first_occurrences, text_digest
from data_pipeline.cleaning.exclude import SHORTEST_CONTAINED, Excluded, read_excluded
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.cleaning.split import SIDES, Side, Split, Splitter

__all__ = [
    "SHORTEST_CONTAINED",
    "SIDES",
    "CleanPart",
    "CleanSide",
    "CleanTask",
    "Excluded",
    "Side",
    "Split",
    "Splitter",
    "clean_part",
    "first_occurrences",
    "normalise",
    "read_excluded",
    "text_digest",
]
