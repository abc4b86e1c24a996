"""Which parameters learn how: decay by shape, and a factor of the rate per group.

Rates that fall with the depth below the heads: Howard & Ruder, 2018; Clark et al., 2020.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

_BACKBONE = "backbone."


def parameter_groups(
    learner: "nn.Module",
    weight_decay: float,
    layer_decay: float | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups of equal decay and rate, in the order their first members have in the learner.

    A group is ``{params, weight_decay, lr_scale, name}``; groups of one name have one rate.

    Args:
        learner: its trainable parameters are grouped; vectors (biases, norms) are not decayed.
        weight_decay: of the matrices.
        layer_decay: factor from a layer's rate to that of the layer below; the embeddings are the
            lowest, heads and what else stands above the layers learn at the full rate.
        rates: prefix of parameter names -> another factor; the longest prefix counts.

    Raises:
        RecipeError: nothing is trainable, a prefix fits no trainable parameter, or the model's
            layers cannot be told.
    """
    factors = dict(rates or {})
    unused = set(factors)
    depths = _depths(learner) if layer_decay is not None else {}
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, str], dict[str, Any]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((p for p in factors if name.startswith(p)), key=len, default=None)
        unused.discard(prefix or "")
        depth = depths.get(name, top)
        scale = 1.0 if layer_decay is None else layer_decay ** (top - depth)
        if prefix is not None:
            scale *= factors[prefix]
        called = " ".join(filter(None, [_called(depth, top) if top else "", prefix or ""])) or "all"
        decay = weight_decay if parameter.ndim > 1 else 0.0
        empty = {"params": [], "weight_decay": decay, "lr_scale": scale, "name": called}
        groups.setdefault((decay, called), empty)["params"].append(parameter)
    if unused:
        msg = f"optimizer.rates: no trainable parameter begins with {sorted(unused)}"
        raise RecipeError(msg)
    if not groups:
        msg = "nothing to train: the adaptation leaves no parameter trainable"
        raise RecipeError(msg)
    return list(groups.values())


def _depths(learner: "nn.Module") -> dict[str, int]:
    """Depth of each parameter of the learner; heads are as high as what is above the layers."""
    from engine.layers import layer_of

    backbone: Any = learner.backbone
    inside = layer_of(backbone)
    top = backbone.config.num_hidden_layers + 1
    names = (name for name, _ in learner.named_parameters())
    return {name: inside.get(name.removeprefix(_BACKBONE), top) for name in names}


def _called(depth: int, top: int) -> str:
    if depth == 0:
        return "embeddings"
    return "heads" if depth == top else f"layer {depth}"
