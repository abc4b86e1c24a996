"""The torch side of the linear head: pooling and one matrix."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from downstream.heads.linear import Pooling

INITIAL_SPREAD = 0.02  # as transformers initialises its own heads


class Classifier(nn.Module):
    """Pools, drops out, projects."""

    def __init__(self, width: int, classes: int, pooling: "Pooling", dropout: float) -> None:
        super().__init__()
        self._pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, classes)
        nn.init.normal_(self.projection.weight, std=INITIAL_SPREAD)
        nn.init.zeros_(self.projection.bias)

    def forward(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Logits [B, C] from hidden states [B, L, D] and bool [B, L], false at padding."""
        pooled = pool(hidden, real, self._pooling)
        logits: Tensor = self.projection(self.dropout(pooled))
        return logits


def pool(hidden: Tensor, real: Tensor, pooling: "Pooling") -> Tensor:
    """[B, D] from [B, L, D]; padding stands on the right and never counts."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        last = real.long().sum(1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    outside = ~real.unsqueeze(-1)
    if pooling == "max":
        return hidden.masked_fill(outside, float("-inf")).max(1).values
    total = hidden.float().masked_fill(outside, 0.0).sum(1)
    return (total / real.sum(1, keepdim=True)).to(hidden.dtype)
