"""Frozen lower layers: general features stay, the upper part of the model trains."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from torch import nn

    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


class FrozenLayers(Config):
    """Freeze the lowest layers, and the embeddings; the gradient ends where nothing trains."""

    name: Literal["frozen"] = "frozen"
    layers: int = Field(ge=0, description="how many of the lowest transformer layers do not train")
    embeddings: bool = Field(
        default=True,
        description="nor do the embeddings, and what is tied to them",
    )

    @model_validator(mode="after")
    def _freezes(self) -> Self:
        if not self.layers and not self.embeddings:
            msg = "nothing is frozen; give layers or embeddings: true, or adaptation full"
            raise ValueError(msg)
        return self

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """What lies above; RecipeError as ``apply``."""
        from engine.trained_part import TrainedPart, depth_of

        self._require_layers(shape.sizes.layers)
        depths = {weight.name: depth_of(weight, shape) for weight in shape.weights}
        trained = frozenset(name for name, depth in depths.items() if self._trains(depth))
        passed = depths.keys() - trained if self.embeddings else ()
        return TrainedPart(trained, passed=frozenset(passed))

    def build(self, seed: int) -> "FrozenLayers":
        """Itself: it has no random weights."""
        del seed
        return self

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone with its upper part alone trainable.

        Raises:
            RecipeError: it has fewer layers, or none that can be told.
        """
        from engine.layers import layer_of

        config: Any = backbone.config
        self._require_layers(config.num_hidden_layers)
        depths = layer_of(backbone)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self._trains(depths[name]))
        return backbone

    def _require_layers(self, there: int) -> None:
        if self.layers > there:
            msg = (
                f"adaptation frozen: layers is {self.layers}, but the model has {there}; give at "
                "most that"
            )
            raise RecipeError(msg)

    def _trains(self, depth: int) -> bool:
        return depth > self.layers if depth else not self.embeddings

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone as it is."""
        return backbone.requires_grad_()

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """None: the export holds all that was learned."""
        del backbone
        return {}
