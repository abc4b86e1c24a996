"""The seam of packing, and what its members share."""

import json
from typing import ClassVar, Protocol

from pydantic import Field

from configs.schema import Config
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText


class Packer(Protocol):
    """What a packing algorithm offers."""

    @property
    def identity(self) -> str:
        """Its name, version and settings: the same identity gives the same plans."""
        ...

    def plan(self, text: ShardText, shape: RowShape) -> PackingPlan:
        """Rows that hold every token of the shard's sequences exactly once; deterministic."""
        ...


class PackingConfig(Config):
    """A member of the family.

    Class attributes:
        VERSION: raised when the same shard and settings give another plan.
        SHARES_ROWS: documents that must not see one another stand in one row.
    """

    VERSION: ClassVar[int] = 1
    SHARES_ROWS: ClassVar[bool] = True

    @property
    def identity(self) -> str:
        """Its name, version and settings: the same identity gives the same plans."""
        settings = self.model_dump(mode="json", exclude_none=True)
        name = settings.pop("name")
        told = f" {json.dumps(settings, sort_keys=True)}" if settings else ""
        return f"{name} {self.VERSION}{told}"

    def longest_piece(self, length: int) -> int:
        """The most tokens with positions that run through, in rows of ``length``."""
        return length


class LongestPiece(PackingConfig):
    """A packing whose pieces may be held shorter than its rows.

    The row is then a budget of tokens that several documents fill: one shape for every batch.
    """

    longest: int | None = Field(
        None,
        ge=2,
        description="tokens of a document in a row, special ones included; absent: the row's",
    )

    def longest_piece(self, length: int) -> int:
        """The most tokens with positions that run through, in rows of ``length``."""
        return length if self.longest is None else min(length, self.longest)
