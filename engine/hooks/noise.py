"""The noise of a base model's held-out loss: over further draws of masks, or over rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import NumericalError
from engine.forgetting import ForgettingConfig, NoiseFloor
from engine.hooks.validation import held_out_loss, turns
from engine.protocols import Backend, Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The set that must not be forgotten.

    Attributes:
        batches: (number of the draw) -> its rows with their masks; 0: those of every measurement.
        rows: the same rows as those of draw 0, each as a source of its own.
    """

    batches: Callable[[int], Sequence[Batch]]
    rows: Callable[[], Sequence[Batch]]


@dataclass(frozen=True, slots=True)
class Base:
    """The model before training: its loss with the masks of every measurement, and its noise."""

    loss: float
    noise: NoiseFloor


def measured_base(
    backend: Backend, held_out: HeldOut, config: ForgettingConfig, may_turn: Callable[[], bool]
) -> Base | None:
    """Of the present weights; every rank must call it.

    None: ``may_turn``, which is asked before each batch, said no.

    Raises:
        NumericalError: the loss is not finite, or there is no noise at all.
    """
    fixed = held_out.batches(0)
    loss = _loss(backend, fixed, may_turn, config.set)
    if loss is None:
        return None
    if _same(fixed, held_out.batches(1)):
        noise = _over_rows(backend, held_out, config, may_turn)
    else:
        noise = _over_draws(backend, held_out, config, may_turn)
    if noise is not None and not noise.floor > 0:
        msg = (
            f"forgetting: the loss on {config.set} is the same for all {noise.samples} "
            f"{noise.kind}: no noise can be told; give more validation.rows"
        )
        raise NumericalError(msg)
    return Base(loss, noise) if noise else None


def _over_rows(
    backend: Backend, held_out: HeldOut, config: ForgettingConfig, may_turn: Callable[[], bool]
) -> NoiseFloor | None:
    rows = row_losses(backend, held_out.rows(), may_turn)
    return NoiseFloor.of_rows(rows.sums, rows.counts, config.sigmas) if rows else None


def _over_draws(
    backend: Backend, held_out: HeldOut, config: ForgettingConfig, may_turn: Callable[[], bool]
) -> NoiseFloor | None:
    losses = []
    for number in range(1, 1 + config.draws):
        loss = _loss(backend, held_out.batches(number), may_turn, config.set)
        if loss is None:
            return None
        losses.append(loss)
    return NoiseFloor.of_draws(losses, config.sigmas)


def _loss(
    backend: Backend, batches: Sequence[Batch], may_turn: Callable[[], bool], name: str
) -> float | None:
    found = held_out_loss(backend, batches, may_turn)
    if found is None:
        return None
    if found["loss"] is None:
        msg = f"forgetting: the base's loss on {name} is not finite, or it has no targets"
        raise NumericalError(msg)
    return float(found["loss"])


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Of the same rows in the same order, fp64 [rows]: summed losses, and numbers of targets."""

    sums: "NDArray[np.float64]"
    counts: "NDArray[np.float64]"


def row_losses(
    backend: Backend, batches: Sequence[Batch], may_turn: Callable[[], bool] = lambda: True
) -> RowLosses | None:
    """Losses row by row, of batches in which each row is a source; every rank must call it.

    None: ``may_turn``, which is asked before each batch, said no.
    """
    import torch

    sizes = [len(batch.source_counts) for batch in batches]
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    total = torch.zeros(2, sum(sizes), dtype=torch.float64, device=backend.device)
    for index, batch in turns(backend, batches):
        if not may_turn():
            return None
        loss = backend.evaluate(batch)
        if index < len(batches):
            part = slice(firsts[index], firsts[index] + sizes[index])
            total[0, part] = loss.by_source.double()
            total[1, part] = torch.tensor(batch.source_counts, dtype=torch.float64).to(total)
    sums, counts = backend.sum_over_ranks(total).cpu().numpy()
    return RowLosses(sums, counts)


def _same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether two draws are the same, tensor for tensor: then nothing is drawn."""
    import torch

    return all(
        torch.equal(value, right.tensors[name])
        for left, right in zip(one, other, strict=True)
        for name, value in left.tensors.items()
    )
