"""Activation checkpointing: a layer's inside is computed again in the backward pass (Chen, 2016).

Only the inputs of such layers stay in memory. The numbers are the same to the last bit: dropout
draws the same masks again.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class ActivationCheckpointing(Config):
    """Trade arithmetic for memory: at most one more forward pass a step."""

    every: PositiveInt = Field(1, description="1: every layer is recomputed; k: every k-th alone")

    def apply(self, backbone: "nn.Module") -> None:
        """Mark every ``every``-th layer, from the first on; in evaluation they run as ever.

        Raises:
            RecipeError: the model has no layers that can be recomputed, or fewer than ``every``.
        """
        layers = recomputable(backbone)
        if not layers:
            kind: Any = backbone
            msg = (
                f"activation_checkpointing: {type(kind).__name__} has no layers that transformers "
                "can recompute; remove activation_checkpointing"
            )
            raise RecipeError(msg)
        if self.every > len(layers):
            msg = (
                f"activation_checkpointing: every is {self.every}, but the model has "
                f"{len(layers)} layers; give at most that"
            )
            raise RecipeError(msg)
        for layer in layers[:: self.every]:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = _recomputed


def recomputable(backbone: "nn.Module") -> list[Any]:
    """The model's repeated layers in their order; one inside another is not counted."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[Any] = []
    inside: set[nn.Module] = set()
    for module in backbone.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside |= set(module.modules())
    return found


def _recomputed(layer: "Callable[..., Any]", *inputs: Any) -> Any:
    """The layer's outputs; its inside is forgotten until the backward pass asks for it."""
    from torch.utils.checkpoint import checkpoint

    # The reentrant kind would lose the gradient where inputs need none, as LoRA's first layer's.
    return checkpoint(layer, *inputs, use_reentrant=False)
