"""Dropout on a CPU (Srivastava et al., 2014), from sixteen random bits a value.

torch draws numbers one by one, and needs six times as long as this (benchmarks/LOG.md). The rate is
kept to one part in 32,768, and what is kept is scaled by its exact inverse: the mean stays.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_STEPS = 1 << 15
_WORDS = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """What dropout keeps.

    Attributes:
        bits: int16, all ones where a value is kept and zero where it is not.
        scale: of what is kept.
    """

    bits: Tensor
    scale: float

    def keep_(self, values: Tensor) -> Tensor:
        """Set what is dropped to zero, in place, without scaling; bf16 or fp32, of any shape."""
        kind = torch.int16 if values.element_size() == 2 else torch.int32
        values.view(kind).bitwise_and_(self.bits.to(kind).view(values.shape))
        return values


def draw(count: int, rate: float) -> Kept:
    """For so many values; a function of torch's generator, which moves on by one number."""
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        0, 2**64, -(-count // _WORDS), dtype=np.uint64
    )
    drawn = torch.from_numpy(words.view(np.int16))[:count]
    dropped = _dropped(rate)
    # To 0 ... 32,767, less the threshold: negative where it is to be dropped.
    drawn.bitwise_and_(_STEPS - 1).sub_(dropped).bitwise_right_shift_(15).bitwise_not_()
    return kept_of(drawn, rate)


def kept_of(bits: Tensor, rate: float) -> Kept:
    """What was drawn earlier with that rate."""
    return Kept(bits, _STEPS / (_STEPS - _dropped(rate)))


def _dropped(rate: float) -> int:
    """Of all steps; one at least is left, or what is kept would be scaled beyond all numbers."""
    return min(_STEPS - 1, round(rate * _STEPS))


def quicken(module: nn.Module) -> None:
    """Let the dropout layers of a module on a CPU draw that way; their rates stay."""
    for layer in module.modules():
        if type(layer) is nn.Dropout and not layer.inplace:
            layer.__class__ = QuickDropout


class QuickDropout(nn.Dropout):
    """A dropout layer for bf16 and fp32 on a CPU; anything else goes by torch's own."""

    def forward(self, values: Tensor) -> Tensor:
        """``values`` with a share of ``p`` set to zero, and the rest scaled; any shape."""
        able = values.device.type == "cpu" and values.dtype in (torch.bfloat16, torch.float32)
        if not self.training or not able or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return super().forward(values)
        dropped: Tensor = _Drop.apply(values, self.p)  # type: ignore[no-untyped-call]  # torch's own
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        kept = draw(values.numel(), rate)
        ctx.scale = kept.scale
        ctx.save_for_backward(kept.bits)
        return kept.keep_(values * kept.scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        # Laid out like the values, whatever the layers behind made of it.
        scaled = (slopes[0] * ctx.scale).contiguous()
        return Kept(bits, ctx.scale).keep_(scaled), None
