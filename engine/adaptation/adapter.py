"""Bottleneck adapters in every layer (Houlsby, 2019; Pfeiffer, 2021; parallel: He, 2022)."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from configs.schema import Config

if TYPE_CHECKING:
    from engine.adaptation.bottleneck import BottleneckAdapters
    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart

ATTENTION = "attention_adapter"
FEED_FORWARD = "feed_forward_adapter"


class Adapter(Config):
    """Freeze the backbone; train two small matrices beside or behind each layer's parts."""

    name: Literal["adapter"] = "adapter"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        "pfeiffer",
        description="houlsby: behind attention and behind the feed-forward part; pfeiffer: behind "
        "the latter alone; parallel: beside it",
    )
    size: PositiveInt = Field(64, description="width of the bottleneck")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="of a parallel adapter; absent: 4"
    )

    @model_validator(mode="after")
    def _scaled_where_parallel(self) -> Self:
        if self.scale is not None and self.placement != "parallel":
            msg = f"scale belongs to placement parallel, not to {self.placement}; remove it"
            raise ValueError(msg)
        return self

    @property
    def factor(self) -> float:
        """What comes out of a bottleneck is multiplied with it."""
        if self.placement != "parallel":
            return 1.0
        return 4.0 if self.scale is None else self.scale

    @property
    def in_layer(self) -> tuple[str, ...]:
        """Names of the modules that each layer gets."""
        return (ATTENTION, FEED_FORWARD) if self.placement == "houlsby" else (FEED_FORWARD,)

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """Two matrices and two vectors for each module of each layer."""
        from engine.parameter_shapes import Weight
        from engine.trained_part import TrainedPart

        width, size = shape.sizes.hidden, self.size
        added = [
            Weight(f"layer.{number}.{module}.{name}", given)
            for number in range(shape.sizes.layers)
            for module in self.in_layer
            for name, given in (
                ("down.weight", (size, width)),
                ("down.bias", (size,)),
                ("up.weight", (width, size)),
                ("up.bias", (width,)),
            )
        ]
        return TrainedPart(frozenset(), tuple(added))

    def build(self, seed: int) -> "BottleneckAdapters":
        """The adaptation with its first weights keyed by ``seed``."""
        from engine.adaptation.bottleneck import BottleneckAdapters

        return BottleneckAdapters(self, seed)
