"""What a recipe says about the rows that a run reads."""

from collections.abc import Mapping
from math import floor
from typing import Self

from pydantic import Field, model_validator

from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.packing import BestFitPacking, Packing
from data_pipeline.persistence import require_no_secrets
from data_pipeline.shards import CacheConfig, Mode, Verify
from data_pipeline.streaming.order import IndexRange, require_ascending
from data_pipeline.streaming.schedule import Schedule
from data_pipeline.streaming.shuffle import FullShuffle, ShuffleConfig


class SourceConfig(Config):
    """One source of a mixture."""

    shards: str = Field(description="location of a shard folder; a URL, too")
    weight: float = Field(1.0, gt=0, description="its share of the rows, relative to the others'")
    most_epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="passes after which it is not read again and the others share its part",
    )

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        try:
            require_no_secrets(self.shards)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self


class WeightChange(Config):
    """Other weights from the first block of rows that begins at or after ``after``."""

    after: int = Field(ge=1, description="global row index")
    weights: dict[str, float]


class SkippedRows(Config):
    """Rows left out, as after a loss spike: ``start`` up to, not including, ``stop``."""

    start: int = Field(ge=0)
    stop: int = Field(ge=1)


class DataConfig(Config):
    """Packed rows of a mixture of sources."""

    length: int = Field(ge=4, description="tokens a row, special ones included")
    packing: Packing = BestFitPacking()
    shuffle: ShuffleConfig = FullShuffle()
    sources: dict[str, SourceConfig] = Field(min_length=1)
    changes: tuple[WeightChange, ...] = Field((), description="new weights in mid-run")
    skip: tuple[SkippedRows, ...] = Field((), description="rows that are not read")
    verify: Verify = Field("digests", description="how shards are checked before the first step")
    mode: Mode = Field("mmap", description="pread: for file systems that cannot map files")
    cache: CacheConfig = Field(CacheConfig(), description="where shards at URLs are kept")

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        for change in self.changes:
            if set(change.weights) != set(self.sources):
                msg = (
                    f"changes after row {change.after}: weights for {', '.join(change.weights)}; "
                    f"expected one for each of {', '.join(self.sources)}"
                )
                raise ValueError(msg)
        self._require_pieces_in_rows()
        try:
            self.schedule()
            require_ascending(self.skipped())
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def schedule(self) -> Schedule:
        """The weights of the sources, in the recipe's order."""
        made = Schedule.of({name: source.weight for name, source in self.sources.items()})
        for change in self.changes:
            made = made.changed(change.after, {name: change.weights[name] for name in self.sources})
        return made

    def most_rows(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Rows that each limited source may give in all; ``rows``: of one epoch of each source.

        Raises:
            RecipeError: a limit below one row.
        """
        found = {}
        for name, source in self.sources.items():
            if source.most_epochs is None:
                continue
            # A hair more, so that 0.3 of 10 rows are 3.
            found[name] = floor(source.most_epochs * rows[name] + 1e-6)
            if not found[name]:
                msg = (
                    f"data.sources.{name}.most_epochs: {source.most_epochs} of {rows[name]} rows "
                    "is less than one row; raise it, or leave the source out"
                )
                raise RecipeError(msg)
        return found

    def skipped(self) -> tuple[IndexRange, ...]:
        """The skipped rows as ranges."""
        return tuple(IndexRange(span.start, span.stop) for span in self.skip)

    def _require_pieces_in_rows(self) -> None:
        longest = getattr(self.packing, "longest", None)
        if longest is not None and longest > self.length:
            msg = (
                f"packing.longest {longest} is more than length {self.length}: "
                "no document can be longer in a row than the row; lower it, or leave it out"
            )
            raise ValueError(msg)
