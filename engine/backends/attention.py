"""Which of torch's attention kernels a training pass runs: the fast one for the device.

On a CPU in bf16 the flash kernel's backward pass costs several times its forward pass; written out
as two matrix products, short rows take .55 to .8 of the time (benchmarks/results/cpu_attention.md).
Both honour the same mask. GPUs and fp32 keep torch's own choice.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST = 128
"""Longer rows, in tokens, lose more in the forward pass than the backward pass gains."""


def training_kernels(
    module: "nn.Module", tensors: Mapping[str, "Tensor"], device: torch.device
) -> AbstractContextManager[None]:
    """A context for the forward pass of a batch whose rows are ``tokens`` [B, L]."""
    # Not ``module.training``: a DeepSpeed engine says True of itself while it evaluates.
    if device.type != "cpu" or not torch.is_grad_enabled() or "tokens" not in tensors:
        return nullcontext()
    if tensors["tokens"].shape[1] > LONGEST:
        return nullcontext()
    if next(module.parameters()).dtype is not torch.bfloat16:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
