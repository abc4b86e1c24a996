"""Prefix tuning (Li & Liang, 2021), in every layer as in P-tuning v2 (Liu et al., 2022)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from configs.schema import Config

if TYPE_CHECKING:
    from engine.adaptation.prefixes import PrefixAdaptation
    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


class Prefix(Config):
    """Freeze the backbone; train keys and values that every token of every document sees.

    They are trained as they are, without a network that makes them, and take no positions of the
    text: a document's first token is still at the model's first position.
    """

    name: Literal["prefix"] = "prefix"
    length: PositiveInt = Field(20, description="keys, and values, in front of each layer's own")

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """Keys and values of each layer."""
        from engine.parameter_shapes import Weight
        from engine.trained_part import TrainedPart

        added = [
            Weight(f"layer.{number}.prefix.{name}", (self.length, shape.sizes.keys))
            for number in range(shape.sizes.layers)
            for name in ("key", "value")
        ]
        return TrainedPart(frozenset(), tuple(added))

    def build(self, seed: int) -> "PrefixAdaptation":
        """The adaptation with its first weights keyed by ``seed``."""
        from engine.adaptation.prefixes import PrefixAdaptation

        return PrefixAdaptation(self, seed)
