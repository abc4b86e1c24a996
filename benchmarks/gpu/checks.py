"""What must hold on a device: each check trains a small model and says what it found.

A check returns what it saw, with ``passed``: true, false, or None where the device cannot tell.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Model
from benchmarks.gpu.scene import context_in, deepspeed, stage_of, write_data
from benchmarks.gpu.trial import During, Trial, assembled, run

Found = dict[str, Any]
_STEPS, _WARM = 30, 10
_BF16 = 2e-2
"""By how much sums of losses in bf16 may differ, relatively, when kernels round differently."""
_FP32 = 1e-4


def precision(kind: str, model: Model, folder: Path) -> Found:
    """The loss falls and is finite; fp16 scales its loss dynamically and drops a few steps."""
    trial = _trained(model, folder, deepspeed(model.rows, kind))
    found = _losses(trial) | {"skipped": trial.skipped}
    return found | {"passed": _learns(trial)}


def bf16(model: Model, folder: Path) -> Found:
    """bf16 trains."""
    return precision("bf16", model, folder)


def fp16(model: Model, folder: Path) -> Found:
    """fp16 with dynamic loss scaling trains."""
    return precision("fp16", model, folder)


def compiled(model: Model, folder: Path) -> Found:
    """torch.compile: the same losses within rounding, and its speed over eager's."""
    values = deepspeed(model.rows)
    eager = _trained(model, folder, values)
    quick = _trained(model, folder, values, compile={})
    off = _most_off(eager, quick)
    return {
        "losses_off": round(off, 5),
        "speed": round(quick.tokens_per_second / eager.tokens_per_second, 3),
        "passed": off <= _BF16,
    }


def isolation(model: Model, folder: Path) -> Found:
    """A row's loss is the sum of its documents' losses, each in a row by itself."""
    found: Found = {}
    for kind, allowed in (("fp32", _FP32), ("bf16", _BF16)):
        stage = stage_of(model, folder, 1, deepspeed(model.rows, kind))
        with assembled(stage, context_in(folder / f"isolation-{kind}")) as parts:
            batch = parts.make(0)[0]
            packed = float(parts.backend.evaluate(batch).total)
            alone = sum(float(parts.backend.evaluate(each).total) for each in _documents(batch))
        off = abs(packed - alone) / abs(alone)
        found[f"{kind}_off"] = round(off, 7)
        found["passed"] = found.get("passed", True) and off <= allowed
    return found


def attention(model: Model, folder: Path) -> Found:
    """The attention that is chosen, against sdpa under a block mask, written out."""
    found: Found = {}
    for kind, allowed in (("fp32", _FP32), ("bf16", _BF16)):
        stage = stage_of(model, folder, 1, deepspeed(model.rows, kind))
        with assembled(stage, context_in(folder / f"attention-{kind}")) as parts:
            chosen, off = _attended(parts)
        found |= {f"{kind}_by": chosen, f"{kind}_off": round(off, 7)}
        found["passed"] = found.get("passed", True) and off <= allowed
    return found


def _attended(parts: Any) -> tuple[str, float]:
    """What was chosen; by how much loss and a gradient's norm are off at most, relatively."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, learner = parts.make(0)[0], parts.backend.learner
    chosen: str = learner.backbone.config._attn_implementation
    tensors = {name: each.to(parts.backend.device) for name, each in batch.tensors.items()}
    weight = next(p for p in learner.parameters() if p.requires_grad)
    seen = []
    for name in (chosen, "sdpa"):
        learner.backbone.set_attn_implementation(name)
        with sdpa_kernel(SDPBackend.MATH):
            total, *_ = learner(tensors)
            (gradient,) = torch.autograd.grad(total, [weight])
        seen.append((float(total.detach()), float(gradient.float().norm())))
    return chosen, max(abs(a - b) / abs(b) for a, b in zip(*seen, strict=True))


def optimizer(model: Model, folder: Path) -> Found:
    """The update is torch's fused AdamW: how often a step calls it, and anything else."""
    from torch.profiler import ProfilerActivity, profile

    watched = profile(activities=[ProfilerActivity.CPU])
    _trained(model, folder, deepspeed(model.rows), around=During(12, 17, watched))
    calls = {each.key: each.count for each in watched.key_averages() if "adam" in each.key.lower()}
    fused = calls.get("aten::_fused_adamw_", 0)
    return {"calls_a_step": fused / 5, "others": sorted(set(calls)), "passed": fused > 0}


def offload(model: Model, folder: Path) -> Found:
    """The optimizer on the host learns what it learns on the device."""
    usual = {"stage": 2, "reduce_bucket_size": 5_000_000}
    moved = usual | {"offload_optimizer": {"device": "cpu"}}
    here, there = (
        _trained(model, folder, deepspeed(model.rows, zero_optimization=zero))
        for zero in (usual, moved)
    )
    off = _most_off(here, there)
    speed = there.tokens_per_second / here.tokens_per_second
    return {"losses_off": round(off, 5), "speed": round(speed, 3), "passed": off <= _BF16}


def resume(model: Model, folder: Path) -> Found:
    """A run that goes on from a checkpoint ends in the weights of one that did not stop.

    ``repeats``: whether a second run from the start does; without it nothing can be told.
    """
    import shutil

    stage = stage_of(model, folder, 6, deepspeed(model.rows), checkpoint={"every": 3}, log_every=1)
    first, second, third = (context_in(folder / f"resume-{name}") for name in "abc")
    whole, again = _weights_after(stage, first), _weights_after(stage, second)
    shutil.copytree(first.folder, third.folder, dirs_exist_ok=True)
    shutil.rmtree(third.folder / "checkpoints" / "step-6")
    resumed = _weights_after(stage, third)
    repeats, equal = _equal(whole, again), _equal(whole, resumed)
    return {"repeats": repeats, "equal": equal, "passed": equal if repeats or equal else None}


def syncs(model: Model, folder: Path) -> Found:
    """How often a step makes the host wait for the device, where nothing is logged; and where."""
    import torch

    if not torch.cuda.is_available():
        return {"told": "a CPU has nothing to wait for", "passed": None}
    seen: list[warnings.WarningMessage] = []
    between = During(11, 14, _counting(seen))
    _trained(model, folder, deepspeed(model.rows), around=between)
    waits = [each for each in seen if "synchroniz" in str(each.message)]
    places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waits)
    found = {"a_step": len(waits) / 3, "places": dict(places.most_common(8))}
    return found | {"passed": None}


CHECKS: Mapping[str, Callable[[Model, Path], Found]] = {
    each.__name__: each
    for each in (bf16, fp16, isolation, attention, optimizer, offload, resume, syncs, compiled)
}
"""By name. ``compiled`` is the last: it changes which algorithms the process uses."""


def check(name: str, model: Model, folder: Path) -> Found:
    """One of them, on data of its own."""
    write_data(folder, model, model.rows * (_STEPS + 1))
    return CHECKS[name](model, folder)


@contextmanager
def _counting(seen: list[warnings.WarningMessage]) -> Iterator[None]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
            seen.extend(caught)


def _trained(
    model: Model,
    folder: Path,
    values: Mapping[str, Any],
    around: During | None = None,
    **changes: Any,
) -> Trial:
    stage = stage_of(model, folder, _STEPS, values, **changes)
    return run(stage, folder, _WARM, [around] if around else [])


def _losses(trial: Trial) -> Found:
    return {"first_loss": round(trial.losses[0], 3), "last_loss": round(trial.losses[-1], 3)}


def _learns(trial: Trial) -> bool:
    return all(map(isfinite, trial.losses)) and trial.losses[-1] < trial.losses[0] - 0.1


def _most_off(one: Trial, other: Trial) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True))


def _documents(batch: Any) -> Iterator[Any]:
    """Each document of a batch in a row by itself, padding after it."""
    import torch

    from engine.rows import bounds_of

    tensors = batch.tensors
    rows, width = tensors["tokens"].shape
    at_row, at_place = tensors["at"] // width, tensors["at"] % width
    for row in range(rows):
        segments = tensors["segments"][row]
        for number in range(1, int(segments.max()) + 1):
            mine = segments == number
            first, length = int(mine.nonzero()[0]), int(mine.sum())
            alone = {
                name: torch.zeros_like(tensors[name][row : row + 1])
                for name in ("tokens", "segments", "positions")
            }
            for name, made in alone.items():
                made[0, :length] = 1 if name == "segments" else tensors[name][row][mine]
            wanted = (at_row == row) & (at_place >= first) & (at_place < first + length)
            alone["bounds"] = torch.from_numpy(bounds_of(alone["segments"].cpu().numpy()))
            alone |= {"sources": tensors["sources"][row : row + 1]}
            alone |= {"bounds": torch.from_numpy(bounds_of(alone["segments"].cpu().numpy()))}
            alone |= {"at": at_place[wanted] - first, "labels": tensors["labels"][wanted]}
            if len(alone["at"]):
                yield replace(batch, tensors=alone)


def _weights_after(stage: Any, context: Any) -> dict[str, Any]:
    """Train from the newest checkpoint with the stage's own hooks; all states at the end."""
    from engine.training import train_from_newest

    with assembled(stage, context) as parts:
        train_from_newest(parts)
        return {
            f"{piece.name}/{piece.key}/{piece.start}": piece.tensor.detach().cpu().clone()
            for piece in parts.backend.fragments()
        }


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
