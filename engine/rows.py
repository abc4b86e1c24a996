"""Examples as tensors, and losses split over the sources they come from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.example import Example

if TYPE_CHECKING:
    from torch import Tensor

    from engine.protocols import Batch, Loss


def stack(examples: Sequence[Example], sources: int) -> dict[str, "Tensor"]:
    """Tokens, segments and positions, int64 [B, L]; sources, fp32 [B, S] one-hot."""
    import torch

    fields = {
        name: torch.from_numpy(np.stack([getattr(row, name) for row in examples])).long()
        for name in ("tokens", "segments", "positions")
    }
    origin = torch.tensor([row.key.source for row in examples])
    fields["sources"] = torch.nn.functional.one_hot(origin, sources).float()
    return fields


def batch_of(
    tensors: Mapping[str, "Tensor"],
    examples: Sequence[Example],
    targets: NDArray[np.int64],
    sources: int,
) -> "Batch":
    """A Batch with its counts; ``targets`` int [B] are the predictions asked of each row."""
    from engine.protocols import Batch

    origin = np.array([row.key.source for row in examples])
    tokens = np.array([np.count_nonzero(row.segments) for row in examples])
    return Batch(
        tensors=tensors,
        count=int(targets.sum()),
        tokens=int(tokens.sum()),
        source_counts=_per_source(origin, targets, sources),
        source_tokens=_per_source(origin, tokens, sources),
    )


def _per_source(
    origin: NDArray[np.int64], values: NDArray[np.int64], sources: int
) -> tuple[int, ...]:
    return tuple(int(values[origin == source].sum()) for source in range(sources))


def summed(losses: "Tensor", row: "Tensor", sources: "Tensor") -> "Loss":
    """The Loss of single predictions.

    Args:
        losses: fp32 [T], with gradient.
        row: int64 [T], the row each belongs to.
        sources: fp32 [B, S], one-hot.
    """
    from engine.protocols import Loss

    detached = losses.detach()
    per_row = detached.new_zeros(sources.shape[0]).index_add(0, row, detached)
    return Loss(losses.sum(), per_row @ sources.to(per_row.dtype))
