"""Which kernels a model trains with: by its device, its precision and its rows, never by a key."""

from typing import TYPE_CHECKING

import torch

from engine.kernels import attention, dropout, memory

if TYPE_CHECKING:
    from torch import nn

_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quicken(backbone: "nn.Module", device: torch.device, precision: str, length: int) -> None:
    """Let a transformers model train as fast as its device can.

    Losses stay the same but for rounding; dropout draws other numbers than torch's would. Not for
    a model that is compiled: a compiler chooses kernels by itself.

    Args:
        backbone: before a backend wraps it.
        device: that it will be on.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        length: tokens in a row, at most.
    """
    if attention.suits(backbone, device, _KINDS[precision], length):
        attention.use(backbone)
    if device.type == "cpu":
        dropout.quicken(backbone)
        memory.keep_freed_memory()
