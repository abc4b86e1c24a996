"""BitFit: only the bias vectors train (Ben Zaken et al., 2022)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from torch import nn

    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


class BiasOnly(Config):
    """Freeze every matrix and every scale; train the vectors that are added."""

    name: Literal["bitfit"] = "bitfit"
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="ends of the names of modules whose biases train; absent: all biases",
    )

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """The biases; RecipeError as ``apply``."""
        from engine.trained_part import TrainedPart, depth_of

        depths = {weight.name: depth_of(weight, shape) for weight in shape.weights}
        return TrainedPart(self._chosen(depths, shape.model_type))

    def build(self, seed: int) -> "BiasOnly":
        """Itself: it has no random weights."""
        del seed
        return self

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone with its biases alone trainable.

        Raises:
            RecipeError: its layers have no biases, or none of the targets'.
        """
        from engine.layers import layer_of

        model: Any = backbone
        names = self._chosen(layer_of(backbone), model.config.model_type)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in names)
        return backbone

    def _chosen(self, depths: Mapping[str, int], kind: str) -> frozenset[str]:
        """Of the parameters, whose depths are given, those that train."""
        names = frozenset(name for name in depths if self._trains(name))
        # One on the vocabulary alone makes no model with biases.
        layers = {depth for depth in depths.values() if depth} - {max(depths.values())}
        if not names or (self.targets is None and not layers & {depths[name] for name in names}):
            where = f"modules {list(self.targets)}" if self.targets else "layers"
            msg = (
                f"adaptation bitfit: the {where} of this {kind} have no biases; take adaptation "
                "lora, or name other targets"
            )
            raise RecipeError(msg)
        return names

    def _trains(self, name: str) -> bool:
        module, _, kind = name.rpartition(".")
        if kind != "bias":
            return False
        return self.targets is None or any(
            module == target or module.endswith(f".{target}") for target in self.targets
        )

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone as it is."""
        return backbone.requires_grad_()

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """None: the export holds all that was learned."""
        del backbone
        return {}
