"""Filters of texts. To add one: write its file, name it in the union."""

from typing import Annotated

from pydantic import Field

from data_pipeline.cleaning.filters.c4_quality import C4Quality
from data_pipeline.cleaning.filters.contains import Contains
from data_pipeline.cleaning.filters.filter import Filter, Filters, Judge, Refusal
from data_pipeline.cleaning.filters.fineweb_quality import FineWebQuality
from data_pipeline.cleaning.filters.gopher_quality import GopherQuality
from data_pipeline.cleaning.filters.gopher_repetition import GopherRepetition
from data_pipeline.cleaning.filters.language import LanguageFilter
from data_pipeline.cleaning.filters.length import Length

AnyFilter = Annotated[
    Length
    | Contains
    | LanguageFilter
    | GopherQuality
    | GopherRepetition
    | C4Quality
    | FineWebQuality,
    Field(discriminator="name"),
]

__all__ = [
    "AnyFilter",
    "C4Quality",
    "Contains",
    "Filter",
    "Filters",
    "FineWebQuality",
    "GopherQuality",
    "GopherRepetition",
    "Judge",
    "LanguageFilter",
    "Length",
    "Refusal",
]
