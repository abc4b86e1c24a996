"""One training run through the engine's own parts, and what it took."""

import contextlib
import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from configs.errors import ResourceError
from engine.protocols import Hook

if TYPE_CHECKING:
    import torch

    from configs.stage import StageContext
    from engine.assemble import Parts
    from engine.pretraining import PretrainStage
    from engine.protocols import Architecture, Batch


@dataclass(frozen=True, slots=True)
class Trial:
    """A run from its first step to its last.

    Attributes:
        losses: mean loss of each logged stretch of steps.
        skipped: steps that fp16's scaling dropped.
        tokens_per_second: real tokens, by the clock, after the warm-up.
        flops_per_second: those that the model needs, attention within documents alone; recomputing
            is none.
        matmul_rate: FLOP/s of a matrix product on the device, in the model's precision.
        peak: bytes of the device that torch took at the most; None on a CPU.
        zero: the ZeRO settings, as ``auto`` chose them.
    """

    losses: tuple[float, ...]
    skipped: int
    tokens_per_second: float
    flops_per_second: float
    matmul_rate: float
    peak: int | None
    zero: dict[str, Any]


class During(Hook):
    """Keeps a context entered from after one step until after a later one."""

    name = "during"

    def __init__(self, first: int, last: int, context: AbstractContextManager[Any]) -> None:
        self._first, self._last = first, last
        self._context = context
        self._held = contextlib.ExitStack()

    def after_step(self, backend: Any, progress: Any, record: Any) -> None:
        del backend, record
        if progress.step == self._first:
            self._held.enter_context(self._context)
        elif progress.step == self._last:
            self._held.close()

    def on_end(self, backend: Any, progress: Any) -> None:
        del backend, progress
        self._held.close()


class Clock(Hook):
    """Wall time and tokens of all steps after the warm-up, the device's queue emptied at both."""

    name = "clock"

    def __init__(self, warm: int, steps: int) -> None:
        self._ends = (warm, steps)
        self._times: list[float] = []
        self._counts: list[Any] = []
        self._counting = False

    def after_step(self, backend: Any, progress: Any, record: Any) -> None:
        if self._counting:
            self._counts.append(record.counts[:2])
        if progress.step in self._ends:
            wait_for(backend.device)
            self._times.append(perf_counter())
            self._counting = not self._counting

    @property
    def seconds(self) -> float:
        """Of all steps after the warm-up."""
        began, ended = self._times
        return ended - began

    def rates(self) -> tuple[float, float]:
        """(targets, tokens) a second."""
        targets, tokens = sum(counts.cpu() for counts in self._counts).tolist()
        return targets / self.seconds, tokens / self.seconds


def squared_lengths(batches: "Sequence[Batch]") -> float:
    """Sum over documents, as they lie in rows, of their lengths' squares; padding is none."""
    total = 0.0
    for batch in batches:
        bounds = batch.tensors["bounds"].long()
        is_text = batch.tensors["segments"].flatten()[bounds[:-1]] > 0
        total += float((bounds.diff()[is_text].double() ** 2).sum())
    return total


def attention_flops(config: Any, architecture: "Architecture", squares: float) -> float:
    """Of documents each of which attends to itself alone; half of it in decoders."""
    each = 6 if architecture == "causal_lm" else 12
    return each * int(config.num_hidden_layers) * int(config.hidden_size) * squares


def wait_for(device: "torch.device") -> None:
    """Until the device has done all that it was given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def assembled(stage: "PretrainStage", context: "StageContext") -> Iterator["Parts"]:
    """The stage's parts, and the device's memory back afterwards.

    Raises:
        ResourceError: the device has too little memory, whatever torch calls it.
    """
    import torch

    from engine.assemble import assemble

    parts = None
    try:
        parts = assemble(stage, context)
        yield parts
    except torch.OutOfMemoryError as error:
        raise ResourceError(str(error).splitlines()[0]) from None
    finally:
        if parts is not None:
            parts.backend.close()
        del parts
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run(stage: "PretrainStage", folder: Path, warm: int, around: Sequence[Hook] = ()) -> Trial:
    """Train it from its first step to its last, without a checkpoint; ``around``: more hooks."""
    import torch

    from engine.hooks import MetricsHook, Origin, Throughput
    from engine.hooks.throughput import training_cost

    context = context_without_past(folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with assembled(stage, context) as parts:
        architecture = parts.objective.architecture
        steps, length = parts.steps, stage.data.length
        throughput = Throughput(architecture, length)
        lines, clock = context.folder / "metrics.jsonl", Clock(warm, steps)
        names = parts.stream.sources
        told = parts.objective.measures
        metrics = MetricsHook(lines, names, stage.log_every, steps, throughput, measures=told)
        train(parts, [Origin(), metrics, clock, *around])
        is_cuda = parts.backend.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if is_cuda else None
        targets, tokens = clock.rates()
        backbone: Any = parts.backend.learner.backbone
        cost = training_cost(backbone, architecture, 0)
        seen = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        # Steps are made a second time, now that no clock runs.
        squares = sum(squared_lengths(parts.make(step)) for step in range(warm, steps))
        flops = cost.token * tokens + cost.target * targets
        flops += attention_flops(backbone.config, architecture, squares) / clock.seconds
        config: Any = parts.stage.backend.config
        return Trial(
            tuple(line["loss"] for line in seen),
            seen[-1]["skipped"],
            tokens,
            flops,
            throughput.rate,
            peak,
            dict(config["zero_optimization"]),
        )


def train(parts: "Parts", hooks: Sequence[Hook]) -> None:
    """The engine's loop over the engine's batches."""
    from engine.batches import Batches
    from engine.delivery import delivery_to
    from engine.loop import train as loop
    from engine.protocols import Run

    stage, backend = parts.stage, parts.backend
    with Batches(parts.make, 0, parts.steps, delivery=delivery_to(backend.device)) as batches:
        loop(
            Run(
                backend,
                batches,
                stage.schedule,
                stage.optimizer.lr,
                parts.steps,
                parts.seed,
                hooks,
            )
        )


def context_without_past(folder: Path) -> "StageContext":
    """A stage's context in a folder where nothing has run yet."""
    from benchmarks.gpu.scene import context_in

    number = sum(1 for each in folder.glob("run-*")) if folder.exists() else 0
    return context_in(folder / f"run-{number}")
