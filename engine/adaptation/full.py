"""Full training: every weight moves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from configs.schema import Config

if TYPE_CHECKING:
    from torch import nn

    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


class FullTraining(Config):
    """Train everything; add nothing."""

    name: Literal["full"] = "full"

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """All of it."""
        from engine.trained_part import chosen

        return chosen(shape, lambda _: True)

    def build(self, seed: int) -> "FullTraining":
        """Itself: it has no random weights."""
        del seed
        return self

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone with every parameter trainable."""
        return backbone.requires_grad_()

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone as it is."""
        return backbone

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """None: the export holds all that was learned."""
        del backbone
        return {}
