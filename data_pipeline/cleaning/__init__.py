"""What happens to a text between its source and the tokenizer."""

from typing import TYPE_CHECKING

from configs.deferred import deferred
from data_pipeline.cleaning.decontaminate import (
    SHORTEST_CONTAINED,
    Decontamination,
    Evaluation,
    Guard,
    Hit,
    refuse_contaminated,
)
from data_pipeline.cleaning.filters import AnyFilter, Filter
from data_pipeline.cleaning.near_duplicates import NearDuplicates, near_duplicates
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.cleaning.split import SIDES, Side, Split, Splitter

if TYPE_CHECKING:
    from data_pipeline.cleaning.clean import (
        CleanPart,
        CleanSide,
        CleanTask,
        clean_part,
        read_signatures,
    )
    from data_pipeline.cleaning.exact_duplicates import text_digest
    from data_pipeline.cleaning.removal import Removal, read_names, summed

__getattr__ = deferred(
    __name__,
    {
        "clean": ("CleanPart", "CleanSide", "CleanTask", "clean_part", "read_signatures"),
        "exact_duplicates": ("text_digest",),
        "removal": ("Removal", "read_names", "summed"),
    },
)

__all__ = [
    "SHORTEST_CONTAINED",
    "SIDES",
    "AnyFilter",
    "CleanPart",
    "CleanSide",
    "CleanTask",
    "Decontamination",
    "Evaluation",
    "Filter",
    "Guard",
    "Hit",
    "NearDuplicates",
    "Removal",
    "Side",
    "Split",
    "Splitter",
    "clean_part",
    "near_duplicates",
    "normalise",
    "read_names",
    "read_signatures",
    "refuse_contaminated",
    "summed",
    "text_digest",
]
