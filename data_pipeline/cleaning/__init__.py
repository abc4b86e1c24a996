"""What happens to a text between its source and the tokenizer."""

from data_pipeline.cleaning.exact_duplicates import first_occurrences, text_digest
from data_pipeline.cleaning.normalise import normalise

__all__ = ["first_occurrences", "normalise", "text_digest"]
