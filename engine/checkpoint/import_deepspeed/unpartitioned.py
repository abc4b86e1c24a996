"""Without ZeRO (stage 0): the optimizer's state lies in the model's file, by number alone."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed import contents
from engine.checkpoint.import_deepspeed.contents import (
    WEIGHT,
    Adam,
    Contents,
    ModelState,
    Parameter,
    Piece,
    require,
    require_tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Named = Mapping[str, Shape]
_NORMS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)
_DECAYS: dict[str, Callable[[str, Shape], bool]] = {
    "matrices": lambda _, shape: len(shape) > 1,
    "all but biases and norms": lambda name, _: not _NORMS.search(name),
    "all but bias and LayerNorm.weight": lambda name, _: (
        "bias" not in name and "LayerNorm.weight" not in name
    ),
}
"""The usual ways in which programs part the decayed parameters from the others."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """What the model's file holds of the optimizer.

    Attributes:
        numbers: of each group's parameters, under which ``states`` holds them.
        masters: fp32 weights by group and place; None if the model's own are fp32.
    """

    groups: Sequence[Mapping[str, Any]]
    numbers: Sequence[Sequence[int]]
    states: Mapping[int, Any]
    masters: Sequence[Sequence["Tensor"]] | None
    loss_scale: Mapping[str, Any] | None


def read_unpartitioned(model: ModelState, trains: Callable[[str], bool]) -> Contents:
    """A checkpoint of stage 0; ``trains`` tells which of its parameters train in the stage.

    Raises:
        CheckpointError: the optimizer's numbers cannot be told from its parameters' shapes.
    """
    saved = _saved(model)
    whole = {n: t for n, t in model.module.items() if n not in model.aliases and t.numel()}
    names = _names(model, whole, saved, trains)
    trained, steps, bare = {}, [], []
    for group, place, name in _places(names):
        state = saved.states.get(saved.numbers[group][place])
        where = f"{model.path}: {name}"
        adam = contents.adam(state, saved.groups[group], where) if state else None
        master = saved.masters[group][place] if saved.masters else whole[name]
        trained[name] = _parameter(tuple(whole[name].shape), master, adam, where)
        steps += [adam.steps] if adam else []
        bare += [] if adam else [name]
    count = contents.one_step_count(steps, model.path)
    bare = bare if count else []
    trained |= {name: _without_moments(trained[name]) for name in bare}
    kind = str(next(iter(whole.values())).dtype).removeprefix("torch.")
    return Contents(
        kind=f"no ZeRO (stage 0), {kind}",
        version=str(model.values.get("ds_version", "unknown")),
        world=model.world,
        step=model.values["global_steps"],
        adam_steps=count,
        trained=trained,
        aliases=model.aliases,
        second={name: whole[name] for name in trained} if saved.masters else {},
        second_is=f"the checkpoint's own {kind} weights" if saved.masters else "",
        frozen={name: tensor for name, tensor in whole.items() if name not in trained},
        loss_scale=saved.loss_scale if kind == "float16" else None,
        groups=contents.group_settings(saved.groups),
        notes=_notes(bare),
    )


def _saved(model: ModelState) -> _Saved:
    where = model.path
    saved = require(model.values, "optimizer", dict, where)
    if "fp32_groups_flat" in saved:
        msg = (
            f"{where}: fp16 without ZeRO, whose flat weights bear no names; load it there, save "
            "it with ZeRO stage 1, and import that"
        )
        raise CheckpointError(msg)
    inner = saved if "state" in saved else require(saved, "optimizer_state_dict", dict, where)
    groups = require(inner, "param_groups", list, where)
    return _Saved(
        groups=groups,
        numbers=[list(group["params"]) for group in groups],
        states=require(inner, "state", dict, where),
        masters=saved.get("fp32_groups"),
        loss_scale=_loss_scale(saved),
    )


def _places(names: Sequence[Sequence[str]]) -> Iterator[tuple[int, int, str]]:
    for group, members in enumerate(names):
        for place, name in enumerate(members):
            yield group, place, name


def _notes(bare: Sequence[str]) -> list[str]:
    if not bare:
        return []
    return [f"{len(bare)} parameters never had a gradient ({bare[0]}): their moments begin at zero"]


def _parameter(shape: Shape, master: "Tensor", adam: Adam | None, where: str) -> Parameter:
    tensors = {WEIGHT: master} | dict(adam.moments if adam else {})
    states = {
        key: [Piece(0, require_tensor(tensor, prod(shape), f"{where}: {key}"))]
        for key, tensor in tensors.items()
    }
    return contents.joined(shape, states, where)


def _without_moments(parameter: Parameter) -> Parameter:
    import torch

    weight = parameter.states[WEIGHT]
    zeros = torch.zeros(sum(piece.values.numel() for piece in weight))
    moments = {key: [Piece(0, zeros)] for key in contents.MOMENTS}
    return Parameter(parameter.shape, {WEIGHT: weight, **moments})


def _names(
    model: ModelState,
    whole: Mapping[str, "Tensor"],
    saved: _Saved,
    trains: Callable[[str], bool],
) -> list[list[str]]:
    """The names of each group's parameters, in its order."""
    if all("param_names" in group for group in saved.groups):
        return [[model.own(name) for name in group["param_names"]] for group in saved.groups]
    number = sum(map(len, saved.numbers))
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    if number != len(shapes):
        shapes = {name: shape for name, shape in shapes.items() if trains(name)}
    found = [names for names in _ways(shapes, len(saved.groups)) if _fits(names, shapes, saved)]
    distinct = {str(names): names for names in found}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    why = "more than one way fits" if distinct else "no usual way of grouping them fits"
    msg = (
        f"{model.path}: without ZeRO the optimizer's {number} states in {len(saved.groups)} groups "
        f"bear no names, and {why}; load it there, save it with ZeRO stage 1, and import that"
    )
    raise CheckpointError(msg)


def _ways(shapes: Named, number: int) -> Iterator[list[list[str]]]:
    """Ways of sharing the names, in the model's order, out among so many groups."""
    if number == 1:
        yield [list(shapes)]
        return
    if number != 2:
        return
    for decays in _DECAYS.values():
        parts: tuple[list[str], list[str]] = ([], [])
        for name, shape in shapes.items():
            parts[not decays(name, shape)].append(name)
        yield [parts[0], parts[1]]
        yield [parts[1], parts[0]]


def _fits(names: Sequence[Sequence[str]], shapes: Named, saved: _Saved) -> bool:
    """Whether every state has the shape of the parameter that it would belong to."""
    if list(map(len, names)) != list(map(len, saved.numbers)):
        return False
    for group, place, name in _places(names):
        state = saved.states.get(saved.numbers[group][place]) or {}
        held = [state[key] for key in contents.MOMENTS if key in state]
        held += [saved.masters[group][place]] if saved.masters else []
        if any(tuple(tensor.shape) != shapes[name] for tensor in held):
            return False
    return True


def _loss_scale(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    if not saved.get("dynamic_loss_scale"):
        return None
    fields = ("cur_scale", "cur_iter", "last_overflow_iter")
    return {name: saved[name] for name in fields if name in saved}
