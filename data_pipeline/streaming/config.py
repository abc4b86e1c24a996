"""What a recipe says about the rows that a run reads."""

from typing import Self

from pydantic import Field, model_validator

from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.packing import BestFitPacking, Packing
from data_pipeline.shards import Verify
from data_pipeline.streaming.mixture import Mixture
from data_pipeline.streaming.order import IndexRange, require_ascending


class SourceConfig(Config):
    """One source of a mixture."""

    shards: str = Field(description="location of a shard folder")
    weight: float = Field(1.0, gt=0, description="its share of the rows, relative to the others'")


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
    sources: dict[str, SourceConfig] = Field(min_length=1)
    changes: tuple[WeightChange, ...] = Field((), description="new weights in mid-run")
    skip: tuple[SkippedRows, ...] = Field((), description="rows that are not read")
    verify: Verify = Field("digests", description="how shards are checked before the first step")

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        for change in self.changes:
            if set(change.weights) != set(self.sources):
                msg = (
                    f"changes after row {change.after}: weights for {', '.join(change.weights)}; "
                    f"expected one for each of {', '.join(self.sources)}"
                )
                raise ValueError(msg)
        try:
            self.mixture()
            require_ascending(self.skipped())
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def mixture(self) -> Mixture:
        """The schedule of the sources, in the recipe's order."""
        mixture = Mixture.of({name: source.weight for name, source in self.sources.items()})
        for change in self.changes:
            mixture = mixture.changed(
                change.after, {name: change.weights[name] for name in self.sources}
            )
        return mixture

    def skipped(self) -> tuple[IndexRange, ...]:
        """The skipped rows as ranges."""
        return tuple(IndexRange(span.start, span.stop) for span in self.skip)
