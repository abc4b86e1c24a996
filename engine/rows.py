"""Rows as tensors, and losses split over the sources they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from engine.protocols import Batch, Loss


@dataclass(frozen=True, slots=True)
class TargetLosses:
    """Cross-entropy of targets.

    Attributes:
        total: fp32 scalar with gradient, their sum.
        each: fp32 [T], detached.
        hits: fp32 [T], detached: 1 where no token has a higher score than the target.
    """

    total: "Tensor"
    each: "Tensor"
    hits: "Tensor"


TARGET_WISE = frozenset({"at", "labels"})
"""Tensors of a batch with one entry for each target, [T]; the first size of all others is B."""
BOUNDS = "bounds"
"""The exception: int32 [N + 1], see ``bounds_of``."""


def stack(rows: Rows, sources: int) -> dict[str, "Tensor"]:
    """Tokens, segments and positions, int64 [B, L]; sources, fp32 [B, S] one-hot; bounds."""
    import torch

    fields = {
        name: torch.from_numpy(getattr(rows, name).astype(np.int64))
        for name in ("tokens", "segments", "positions")
    }
    fields["sources"] = one_hot(rows.keys.source, sources)
    fields[BOUNDS] = torch.from_numpy(bounds_of(rows.segments))
    return fields


def bounds_of(segments: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Flat positions at which documents begin, and the end: int32 [N + 1], from segments [B, L].

    Padding at a row's end counts as a document.
    """
    begins = np.ones(segments.shape, np.bool_)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return np.append(np.flatnonzero(begins), segments.size).astype(np.int32)


def one_hot(source: NDArray[np.int64], sources: int) -> "Tensor":
    """Source of each row, int64 [B] -> fp32 [B, S]."""
    import torch

    return torch.from_numpy(np.eye(sources, dtype=np.float32)[source])


def batch_of(
    tensors: Mapping[str, "Tensor"],
    source: NDArray[np.int64],
    targets: NDArray[np.int64],
    tokens: NDArray[np.int64],
    sources: int,
) -> "Batch":
    """A Batch with its counts.

    Args:
        tensors: its own.
        source: int64 [B], of each row.
        targets: int64 [B], the predictions asked of each row.
        tokens: int64 [B], those of each row that are no padding.
        sources: how many there are.
    """
    from engine.protocols import Batch

    return Batch(
        tensors=tensors,
        count=int(targets.sum()),
        tokens=int(tokens.sum()),
        source_counts=_per_source(source, targets, sources),
        source_tokens=_per_source(source, tokens, sources),
    )


def _per_source(
    source: NDArray[np.int64], values: NDArray[np.int64], sources: int
) -> tuple[int, ...]:
    totals = np.zeros(sources, np.int64)
    np.add.at(totals, source, values)
    return tuple(totals.tolist())


def targets_of_rows(row: "Tensor", rows: int) -> "Tensor":
    """How many targets each row has, fp32 [rows], from the row of each, int64 [T]."""
    import torch

    # bincount would have a size that a compiler cannot know.
    counts = torch.zeros(rows, device=row.device)
    return counts.index_add(0, row, torch.ones_like(row, dtype=counts.dtype))


def summed(
    losses: "Tensor", row: "Tensor", sources: "Tensor", measured: "Sequence[Tensor]" = ()
) -> "Loss":
    """The Loss of single predictions.

    Args:
        losses: fp32 [T], with gradient.
        row: int64 [T], the row each belongs to.
        sources: fp32 [B, S], one-hot.
        measured: fp32 [T] each, detached: what is told beside the loss.
    """
    return shared_out(losses.sum(), (losses.detach(), *measured), row, sources)


def shared(losses: TargetLosses, tensors: "Mapping[str, Tensor]") -> "Loss":
    """The Loss of targets, with their accuracy; ``tensors``: of the batch."""
    each, row = (losses.each, losses.hits), tensors["at"] // tensors["tokens"].shape[1]
    return shared_out(losses.total, each, row, tensors["sources"])


def shared_out(
    total: "Tensor", each: "Sequence[Tensor]", row: "Tensor", sources: "Tensor"
) -> "Loss":
    """The same, where the sum, fp32 with gradient, is known.

    ``each``: fp32 [T], detached, of the losses, then of what is told beside them.
    """
    import torch

    from engine.protocols import Loss

    values = torch.stack([*each])
    per_row = values.new_zeros(len(each), sources.shape[0]).index_add(1, row, values)
    by_source = per_row @ sources.to(per_row.dtype)
    return Loss(total, by_source[0], by_source[1:])
