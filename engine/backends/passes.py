"""What every backend does alike: a batch to the device and through the learner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from configs.errors import CheckpointError
from engine.protocols import Batch, Loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def score(module: "nn.Module", batch: Batch, device: torch.device) -> Loss:
    """The learner's loss of a micro-batch, in whatever mode the module is."""
    return Loss(*module(on_device(batch.tensors, device)))


@torch.no_grad()
def score_fixed(module: "nn.Module", batch: Batch, device: torch.device) -> Loss:
    """The same without dropout or gradient; the module is in training mode again afterwards."""
    module.eval()
    try:
        return score(module, batch, device)
    finally:
        module.train()


def on_device(tensors: Mapping[str, "Tensor"], device: torch.device) -> dict[str, "Tensor"]:
    """The tensors on the device, copied without waiting where they are pinned."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def rotary_buffers(module: "nn.Module") -> dict[str, "Tensor"]:
    """Copies of the rotary frequencies, by name.

    Casting a module to bf16 rounds them, and with them every position; the model transformers
    loads later computes them anew in fp32. So they are put back after the cast.
    """
    return {
        name: buffer.detach().clone()
        for name, buffer in module.named_buffers()
        if name.endswith("inv_freq")
    }


def restore_buffers(module: "nn.Module", saved: Mapping[str, "Tensor"]) -> None:
    """Put buffers back as they were, on the device where they are now."""
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.data = saved[name].to(buffer.device)


def nothing(device: torch.device) -> "Tensor":
    """fp64 zero: the squares of a rank that holds no weights."""
    return torch.zeros((), dtype=torch.float64, device=device)


@contextmanager
def exchanged(
    weights: "Sequence[Tensor]",
    states: Sequence[Mapping[str, "Tensor"]],
    key: str,
    refresh: Callable[[], None],
) -> Iterator[None]:
    """Inside, ``weights`` have the values of their states' ``key``; nothing is done without states.

    Args:
        weights: what the optimizer steps on, detached.
        states: the optimizer's, one for each.
        key: of a state of the weights' shape.
        refresh: makes what the passes use follow the weights.
    """
    found = [(weight, state[key]) for weight, state in zip(weights, states, strict=True) if state]
    kept = [weight.clone() for weight, _ in found]
    for weight, value in found:
        weight.copy_(value)
    if found:
        refresh()
    try:
        yield
    finally:
        for (weight, _), own in zip(found, kept, strict=True):
            weight.copy_(own)
        if found:
            refresh()


def wanted_keys(given: Sequence[str], state_keys: Sequence[str], steps: int) -> tuple[str, ...]:
    """The optimizer states to fill; none if the checkpoint was taken before the first step.

    ``steps``: those that were taken; the first one that is makes all the states.

    Raises:
        CheckpointError: the checkpoint's states are not this optimizer's.
    """
    found = set(given) - {"fp32"}
    if not found and steps == 0:
        return ()
    if found != set(state_keys):
        msg = (
            f"checkpoint: it holds the optimizer states {sorted(found)}, this run has "
            f"{sorted(state_keys)}; optimizer, penalties and averaging must be those of the "
            "checkpoint"
        )
        raise CheckpointError(msg)
    return tuple(state_keys)
