"""Full training: every weight moves."""

from typing import TYPE_CHECKING, Literal

from configs.schema import Config

if TYPE_CHECKING:
    from torch import nn


class FullTraining(Config):
    """Train everything; add nothing."""

    name: Literal["full"] = "full"

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
