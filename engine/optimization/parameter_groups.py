"""Which parameters learn how: decay by shape, and a factor of the rate per group.

Rates that fall with the depth below the heads: Howard & Ruder, 2018; Clark et al., 2020.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Member:
    """A trained parameter, as far as its group depends on it.

    Attributes:
        name: in the learner.
        dimensions: of its shape.
        depth: of its layer (``engine.layers.layer_of``); None: nobody asks.
    """

    name: str
    dimensions: int
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class MemberGroup:
    """Parameters that learn alike.

    Attributes:
        scale: factor of the rate.
        name: groups of one name have one rate.
        rule: that updates them; empty: the optimizer's only one.
    """

    members: tuple[Member, ...]
    decay: float
    scale: float
    name: str
    rule: str = ""


def split(
    members: Sequence[Member],
    weight_decay: float,
    layer_decay: float | None,
    rates: Mapping[str, float],
    top: int,
) -> list[MemberGroup]:
    """Groups of equal decay and rate, in the order of their first members; no model is needed.

    ``top``: the greatest depth. The rest is as in ``parameter_groups``.
    """
    groups: dict[tuple[float, str], MemberGroup] = {}
    for member in members:
        prefix = _prefix(member, rates)
        depth = None if layer_decay is None else top if member.depth is None else member.depth
        scale = 1.0 if depth is None or layer_decay is None else layer_decay ** (top - depth)
        scale *= rates.get(prefix, 1.0)
        called = " ".join(filter(None, [_called(depth, top), prefix])) or "all"
        decay = weight_decay if member.dimensions > 1 else 0.0
        group = groups.get((decay, called), MemberGroup((), decay, scale, called))
        groups[decay, called] = replace(group, members=(*group.members, member))
    return list(groups.values())


def unused(members: Sequence[Member], rates: Mapping[str, float]) -> list[str]:
    """Prefixes that are the longest of no member."""
    return sorted(set(rates) - {_prefix(member, rates) for member in members})


def _prefix(member: Member, rates: Mapping[str, float]) -> str:
    """The longest that the name begins with; empty: none."""
    return max((p for p in rates if member.name.startswith(p)), key=len, default="")


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
    members, top = members_of(learner, are_placed=layer_decay is not None)
    require_all_used(members, rates or {})
    return as_parameters(learner, split(members, weight_decay, layer_decay, rates or {}, top))


def members_of(learner: "nn.Module", *, are_placed: bool) -> tuple[list[Member], int]:
    """The trained parameters, with their depths if ``are_placed``; and the greatest depth.

    Raises:
        RecipeError: the model's layers cannot be told.
    """
    depths, top = _depths(learner) if are_placed else ({}, 0)
    members = [
        Member(name, parameter.ndim, depths.get(name))
        for name, parameter in learner.named_parameters()
        if parameter.requires_grad
    ]
    return members, top


def require_all_used(members: Sequence[Member], rates: Mapping[str, float]) -> None:
    """RecipeError if nothing is trained, or a prefix would do nothing."""
    if not members:
        msg = "nothing to train: the adaptation leaves no parameter trainable"
        raise RecipeError(msg)
    if idle := unused(members, rates):
        msg = f"optimizer.rates: no trainable parameter begins with {idle}"
        raise RecipeError(msg)


def as_parameters(learner: "nn.Module", groups: Sequence[MemberGroup]) -> list[dict[str, Any]]:
    """As torch's optimizers take them."""
    parameters = dict(learner.named_parameters())
    return [
        {
            "params": [parameters[member.name] for member in group.members],
            "weight_decay": group.decay,
            "lr_scale": group.scale,
            "name": group.name,
        }
        | ({"rule": group.rule} if group.rule else {})
        for group in groups
    ]


def _depths(learner: "nn.Module") -> tuple[dict[str, int], int]:
    """Depth of each parameter of the learner, and that of the heads: what is above the layers."""
    from engine.layers import layer_of

    backbone: Any = learner.backbone
    inside = layer_of(backbone)
    top = backbone.config.num_hidden_layers + 1
    names = (name for name, _ in learner.named_parameters())
    return {name: inside.get(name.removeprefix(_BACKBONE), top) for name in names}, top


def _called(depth: int | None, top: int) -> str:
    if depth is None:
        return ""
    if depth == 0:
        return "embeddings"
    return "heads" if depth == top else f"layer {depth}"
