"""How fast a model trains, with how much memory, and what the planner said of it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.models import Model
from benchmarks.gpu.scene import deepspeed, stage_of, write_data
from benchmarks.gpu.trial import Trial, run
from configs.errors import ResourceError

if TYPE_CHECKING:
    from configs.devices import Device
    from engine.choosing import Option

WARM, STEPS = 5, 25
_FEW_TOKENS = 8192
"""A micro-batch of fewer tokens leaves a device idle: rather is every layer recomputed."""


_SHARED = 2


@dataclass(frozen=True, slots=True)
class Try:
    """How a step may be taken.

    Attributes:
        rows: of the micro-batch.
        every: of how many layers one is recomputed; None: none is.
        option: the ZeRO settings that ``auto`` chooses for it, and their memory.
    """

    rows: int
    every: int | None
    option: "Option"

    @property
    def on_host(self) -> int:
        """How many parts of the state are moved there."""
        return sum(1 for key in self.option.zero if key.startswith("offload_"))

    @property
    def accumulation(self) -> int:
        """Micro-batches a step: an update on the host takes seconds, and is shared by a few."""
        return _SHARED if self.on_host else 1


def measure_speed(model: Model, folder: Path, device: "Device") -> dict[str, Any]:
    """A row of the table.

    Raises:
        ResourceError: nothing that the planner proposes fits the device.
    """
    write_data(folder, model, _SHARED * model.rows * STEPS)
    refused: list[str] = []
    for attempt in _tries(model, folder, device):
        try:
            trial = run(_stage(model, folder, attempt), folder, WARM)
        except ResourceError as error:
            refused.append(f"{attempt.rows} rows: {error}")
            continue
        return _row(model, attempt, trial, device) | {"refused": refused}
    msg = f"{model.name}: nothing fits {device.title}: {'; '.join(refused) or 'by the planner'}"
    raise ResourceError(msg)


def _stage(model: Model, folder: Path, attempt: Try) -> Any:
    recomputing = {"activation_checkpointing": {"every": attempt.every}} if attempt.every else {}
    values = deepspeed(attempt.rows, accumulation=attempt.accumulation)
    return stage_of(model, folder, STEPS, values, **recomputing)


def _tries(model: Model, folder: Path, device: "Device") -> Iterator[Try]:
    """The largest micro-batches first that keep the least of ZeRO, then recomputing."""
    found = [each for every in (None, 1) for each in _fitting(model, folder, device, every)]
    tokens = min(_FEW_TOKENS, model.rows * model.length)
    full = [each for each in found if each.every is None and each.rows * model.length >= tokens]
    recomputed = [each for each in found if each.every]
    small = [each for each in found if each.every is None and each not in full]
    # Settings that move nothing to the host come before all others; of those, long steps do.
    yield from sorted(
        [*full, *recomputed, *small],
        key=lambda each: (each.on_host, -each.rows if each.on_host else 0),
    )


def _fitting(model: Model, folder: Path, device: "Device", every: int | None) -> Iterator[Try]:
    """What the planner finds to fit, the largest first."""
    from engine.choosing import Split, choose
    from engine.parameter_shapes import model_shape
    from engine.stage_memory import architecture, job_of, weights_of

    rows = model.rows
    while rows:
        stage = stage_of(model, folder, STEPS, deepspeed(rows))
        shape = model_shape(model.shape, architecture(stage), model.vocabulary)
        jobs = job_of(stage, shape, weights_of(stage, shape), device)
        with suppress(ResourceError):
            yield Try(rows, every, choose(jobs, Split(1, rows, every), device))
        rows //= 2


def _row(model: Model, attempt: Try, trial: Trial, device: "Device") -> dict[str, Any]:
    planned = attempt.option.memory.peak
    sheet = device.speeds.low if device.speeds else None
    return {
        "name": model.name,
        "tokens_per_s": round(trial.tokens_per_second),
        "goal": model.goal,
        "stretch": model.stretch,
        "mfu_datasheet": round(trial.flops_per_second / sheet, 3) if sheet else None,
        "mfu_measured": round(trial.flops_per_second / trial.matmul_rate, 3),
        "matmul_tflops": round(trial.matmul_rate / 1e12, 2),
        "rows": attempt.rows,
        "accumulation": attempt.accumulation,
        "length": model.length,
        "recomputed_every": attempt.every,
        "zero": attempt.option.title,
        "as_planned": dict(attempt.option.zero) == trial.zero,
        "peak_gib": _gib(trial.peak),
        "planned_gib": _gib(planned),
        "peak_over_planned": round(trial.peak / planned, 3) if trial.peak else None,
        "first_loss": round(trial.losses[0], 3),
        "last_loss": round(trial.losses[-1], 3),
    }


def _gib(count: int | None) -> float | None:
    return None if count is None else round(count / (1 << 30), 2)
