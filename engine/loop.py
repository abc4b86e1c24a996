"""The training loop. It knows the seams and not one technique."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from configs.errors import DataError, Preempted
from data_pipeline.randomness import keyed
from engine import faults
from engine.protocols import Batch, Hook, Loss, Progress, Run, StepRecord

if TYPE_CHECKING:
    from torch import Tensor


def train(run: Run, progress: Progress | None = None) -> Progress:
    """Step from ``progress`` to ``run.steps``; everything else is a hook.

    A hook whose ``on_start`` was called gets its ``on_end``, also when a step or a hook raises.

    Raises:
        Preempted: ``run.stop`` was agreed on; the hooks have saved the state by then.
    """
    now = [progress or Progress()]
    with ExitStack() as ending:
        for hook in run.hooks:
            ending.callback(_end, hook, run, now)
            run.enter(hook.name, now[0].step)
            hook.on_start(run.backend, now[0])
        _end_if_asked(run, now[0])
        while now[0].step < run.steps:
            if run.stop:
                run.stop.begin()
            record = train_step(run, now[0].step)
            now[0] = Progress(now[0].step + 1)
            if run.stop:
                run.stop.agreed()
            for hook in run.hooks:
                run.enter(hook.name, now[0].step)
                hook.after_step(run.backend, now[0], record)
            _end_if_asked(run, now[0])
    return now[0]


def _end_if_asked(run: Run, progress: Progress) -> None:
    """Preempted, if that was agreed on before a step's hooks ended, be it the last one.

    Then a measurement may have been broken off, which the next start makes good.
    """
    if run.stop and run.stop.is_agreed:
        saved = ", its state saved" if progress.step else ""
        msg = (
            f"stopped after step {progress.step} of {run.steps}{saved}; "
            "run the same command again to go on"
        )
        raise Preempted(msg)


def train_step(run: Run, step: int) -> StepRecord:
    """One optimizer step on the micro-batches of ``step``; only a guard reads from the device."""
    began = perf_counter()
    backend = run.backend
    run.enter("data", step)
    lr = run.lr * run.schedule.factor(step, run.steps)
    if run.guard and run.guard.avoids(step):
        return _avoid(run, lr, began)
    micro_batches = _next(run, step)
    run.enter("reduce", step)
    faults.reached("reduce", step=step)
    counts = backend.sum_over_ranks(_counts(micro_batches, backend.device))
    losses, measures = _pass(run, step, micro_batches, counts[0].clamp(min=1.0))
    permit = run.guard.judge(backend, step, losses, counts) if run.guard else None
    run.enter("optimizer", step)
    faults.reached("optimizer", step=step)
    backend.step(lr, permit)
    seconds = perf_counter() - began
    norm, skipped = backend.gradient_norm(), backend.skipped()
    judged = run.guard is not None
    return StepRecord(losses, measures, counts, norm, lr, seconds, skipped, judged=judged)


def _pass(
    run: Run, step: int, micro_batches: Sequence[Batch], wanted: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """Forward and backward of each micro-batch; this rank's losses and measures."""
    backend = run.backend
    losses: Tensor | None = None
    measures: Tensor | None = None
    for index, batch in enumerate(micro_batches):
        # The same rows get the same dropout on any number of ranks.
        number = backend.rank * backend.accumulation + index
        _seed(backend.device, keyed(run.seed, "dropout", step, number))
        run.enter("forward", step)
        faults.reached("forward", step=step)
        loss = backend.forward(batch)
        total = faults.altered("loss", loss.total, step=step, micro=index)
        run.enter("backward", step)
        faults.reached("backward", step=step)
        backend.backward(Loss(total, loss.by_source, loss.measures), wanted)
        parts = torch.cat([total.detach().float().reshape(1), loss.by_source])
        losses = parts if losses is None else losses + parts
        measures = loss.measures if measures is None else measures + loss.measures
    if losses is None or measures is None:
        msg = f"step {step}: no micro-batches"
        raise DataError(msg)
    return losses, measures


def _seed(device: torch.device, number: int) -> None:
    """Seed the generators that a pass draws from.

    Those alone: ``torch.manual_seed`` goes by every kind of device, which takes 0.3 ms.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)


def _avoid(run: Run, lr: float, began: float) -> StepRecord:
    """A step whose rows are left alone: the data, the schedule and the counters go on."""
    next(run.batches, None)
    run.backend.pass_over()
    nothing, seconds = torch.zeros(0), perf_counter() - began
    return StepRecord(nothing, nothing, nothing, math.nan, lr, seconds, skipped=True, judged=True)


def _next(run: Run, step: int) -> Sequence[Batch]:
    try:
        micro_batches = next(run.batches)
    except StopIteration:
        msg = f"step {step} of {run.steps}: the batches ended too early"
        raise DataError(msg) from None
    if len(micro_batches) != run.backend.accumulation:
        msg = (
            f"step {step}: {len(micro_batches)} micro-batches, but the backend accumulates "
            f"{run.backend.accumulation}"
        )
        raise DataError(msg)
    return micro_batches


def _counts(micro_batches: Sequence[Batch], device: torch.device) -> "Tensor":
    """fp64 [2 + 2S] on the CPU: targets, tokens, both by source, of this rank.

    Where they go to a GPU they lie in page-locked memory, so that the copy waits for nothing.
    """
    rows = [(b.count, b.tokens, *b.source_counts, *b.source_tokens) for b in micro_batches]
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return torch.tensor(sums, dtype=torch.float64, pin_memory=device.type == "cuda")


def _end(hook: Hook, run: Run, now: list[Progress]) -> None:
    hook.on_end(run.backend, now[0])
