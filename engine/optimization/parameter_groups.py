"""Which parameters learn how: decay by shape, and a scale of the rate per group."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    learner: "nn.Module", weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups of equal decay and rate, in the order their first members have in the learner.

    Args:
        learner: its trainable parameters are grouped; vectors (biases, norms) are not decayed.
        weight_decay: of the matrices.
        lr_scales: prefix of parameter names -> factor of the rate; the longest prefix counts.

    Raises:
        RecipeError: nothing is trainable, or a prefix fits no trainable parameter.
    """
    scales = dict(lr_scales or {})
    unused = set(scales)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((p for p in scales if name.startswith(p)), key=len, default=None)
        unused.discard(prefix or "")
        scale = 1.0 if prefix is None else scales[prefix]
        decay = weight_decay if parameter.ndim > 1 else 0.0
        key = (decay, scale)
        if key not in groups:
            groups[key] = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups[key]["params"].append(parameter)
    if unused:
        msg = f"lr_scales: no trainable parameter begins with {sorted(unused)}"
        raise RecipeError(msg)
    if not groups:
        msg = "nothing to train: the adaptation leaves no parameter trainable"
        raise RecipeError(msg)
    return list(groups.values())
