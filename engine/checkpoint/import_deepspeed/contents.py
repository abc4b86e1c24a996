"""What was read of a DeepSpeed checkpoint, whichever stage wrote it: parameters as pieces."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed.reading import Scaler

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Piece:
    """A flat run of values of a state; it begins at value ``start`` of the flat parameter."""

    start: int
    values: "Tensor"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trained parameter: the pieces of each state, in order and without a gap."""

    shape: tuple[int, ...]
    states: Mapping[str, Sequence[Piece]]

    def whole(self, key: str) -> "Tensor":
        """A state in the parameter's shape, fp32."""
        import torch

        parts = [piece.values.float() for piece in self.states[key]]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A ``*_model_states.pt``, checked, without wrappers' prefixes in its names.

    Attributes:
        module: the weights that the model computed with, and buffers; empty tensors at stage 3.
        shapes: of the trained parameters of each group, in the order of the flat partitions; None
            at stage 0.
        aliases: a tied name -> the name under which its tensor is held.
    """

    path: Path
    values: Mapping[str, Any]
    module: Mapping[str, "Tensor"]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] | None
    aliases: Mapping[str, str]
    prefix: str

    @property
    def world(self) -> int:
        """Data-parallel ranks that wrote the checkpoint."""
        return int(self.values.get("dp_world_size", 1))

    def own(self, name: str) -> str:
        """A name of the checkpoint without the wrappers' prefix."""
        return name.removeprefix(self.prefix)


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint as it was read; nothing is copied out of its files yet.

    Attributes:
        kind: for people, such as ``ZeRO stage 2``.
        world: ranks that wrote it.
        step: optimizer steps that the run counted, skipped ones among them.
        adam_steps: updates that Adam counts.
        trained: by their names.
        aliases: a tied name -> the name in ``trained`` or ``frozen``.
        second: the weights again, by another way: what the forward pass used, in its precision.
        second_is: what ``second`` is, for people.
        frozen: parameters that did not train, in the precision of the pass.
        loss_scale: fp16's dynamic loss scale and its counters.
        groups: Adam's settings by group: ``betas``, ``eps``, ``weight_decay``.
        notes: what a person should know of it.
    """

    kind: str
    version: str
    world: int
    step: int
    adam_steps: int
    trained: Mapping[str, Parameter]
    aliases: Mapping[str, str]
    second: Mapping[str, "Tensor | Parameter"]
    second_is: str
    frozen: Mapping[str, "Tensor"]
    loss_scale: Mapping[str, Any] | None = None
    groups: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam's state of one tensor: flat or not, ``steps`` the updates it has taken."""

    steps: int
    moments: Mapping[str, "Tensor"]


def adam(state: Mapping[str, Any], group: Mapping[str, Any], where: object) -> Adam:
    """One tensor's optimizer state; CheckpointError if the optimizer was not Adam."""
    import torch

    tensors = {key for key, value in state.items() if torch.is_tensor(value) and value.dim()}
    if tensors != set(MOMENTS):
        held = ", ".join(sorted(state)) or "nothing"
        msg = (
            f"{where}: the optimizer's state is {held}; only Adam's and AdamW's (exp_avg, "
            "exp_avg_sq) can be imported. Export the weights there and name them as the model"
        )
        raise CheckpointError(msg)
    count = state.get("step", group.get("step"))
    if count is None:
        msg = f"{where}: Adam's step count is missing"
        raise CheckpointError(msg)
    return Adam(int(count), {key: state[key] for key in MOMENTS})


def one_step_count(counts: Iterable[int], where: object) -> int:
    """The number of Adam's steps; CheckpointError if parameters have taken different numbers."""
    found = sorted(set(counts))
    if len(found) > 1:
        msg = (
            f"{where}: Adam has taken {found[0]} steps for some parameters and {found[-1]} for "
            "others (such as experts without a gradient); one count holds for all here"
        )
        raise CheckpointError(msg)
    return found[0] if found else 0


def loss_scale(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """fp16's dynamic loss scale and its counters, of an optimizer state; None without one."""
    scaler = state.get("loss_scaler")
    fields = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    if not isinstance(scaler, Scaler) or not vars(scaler).get("dynamic", False):
        return None
    return {name: vars(scaler)[name] for name in fields if name in vars(scaler)}


def group_settings(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the optimizer's groups were set to, of what bears on the import."""
    kept = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    return [{key: group[key] for key in kept if key in group} for group in groups]


def require(values: Mapping[str, Any], key: str, kind: type, where: object) -> Any:
    """``values[key]``; CheckpointError unless it is there and of that kind."""
    value = values.get(key)
    if not isinstance(value, kind):
        given = "missing" if key not in values else f"a {type(value).__name__}"
        msg = f"{where}: '{key}' is {given}, expected a {kind.__name__}: not what DeepSpeed writes"
        raise CheckpointError(msg)
    return value


def require_tensor(value: Any, numel: int, where: object) -> "Tensor":
    """A flat view of a tensor of so many values; CheckpointError otherwise."""
    import torch

    if not torch.is_tensor(value) or not value.is_floating_point() or value.numel() != numel:
        given = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        msg = f"{where}: expected {numel} values, it is {given}; the file is of another checkpoint"
        raise CheckpointError(msg)
    return value.detach().reshape(-1)


def joined(shape: Sequence[int], states: Mapping[str, Sequence[Piece]], where: object) -> Parameter:
    """A parameter of pieces; CheckpointError unless those of every state cover it once."""
    for key, pieces in states.items():
        end = 0
        for piece in pieces:
            if piece.start != end:
                break
            end += piece.values.numel()
        if end != prod(shape) or not pieces:
            msg = (
                f"{where}: the ranks' pieces of '{key}' make {end} values, "
                f"its shape {tuple(shape)} has {prod(shape)}"
            )
            raise CheckpointError(msg)
    return Parameter(tuple(shape), states)
