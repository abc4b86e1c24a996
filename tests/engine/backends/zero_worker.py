"""Ranks of the ZeRO tests: each function is one launch, whose answers rank 0 writes."""

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch.distributed import distributed_c10d

from configs.deepspeed_json import AUTO, PRESETS, read_deepspeed
from configs.errors import DataError
from engine import distributed
from engine.adaptation import LowRank
from engine.protocols import Loss, Permit
from tests.engine import tiny
from tests.engine.backends.zero_cases import (
    CPU,
    PEAK,
    SAVED_AT,
    STATES,
    Saved,
    curve,
    held_out,
    load,
    mine,
    plain,
    same_everywhere,
    save,
    settings,
    zero,
)

COLLECTIVE_LIMIT = timedelta(seconds=2)
LONG = 3
PULL = 1.0
Answers = dict[str, Any]

OFFLOAD = {"offload_optimizer": CPU}
SCALED = {"enabled": True, "initial_scale_power": 18, "hysteresis": 1}
CASES: dict[str, dict[str, Any]] = {
    "fp32 0": settings(0),
    "fp32 1": settings(1),
    "fp32 2": settings(2),
    "fp32 3": settings(3),
    "fp32 1 offload": settings(1, zero=OFFLOAD | {"round_robin_gradients": True}),
    "fp32 2 offload": settings(
        2, zero=OFFLOAD | {"parameter_alignment": True, "reduce_bucket_size": 5000}
    ),
    "fp32 2 reordered": settings(2, zero={"round_robin_gradients": True, "overlap_comm": True}),
    "fp32 1 plainly": settings(
        1,
        zero={"contiguous_gradients": False, "reduce_scatter": False},
        prescale_gradients=True,
    ),
    "fp32 3 offload": settings(
        3, zero=OFFLOAD | {"offload_param": CPU, "sub_group_size": 3000, "overlap_comm": False}
    ),
    "fp32 3 second copy": settings(3, zero={"zero_hpz_partition_size": 2}),
    "bf16 1": settings(1, "bf16"),
    "bf16 2": settings(2, "bf16"),
    "bf16 3": settings(3, "bf16"),
    "bf16 1 offload": settings(1, "bf16", zero=OFFLOAD),
    "bf16 2 sums": settings(2, "bf16", data_types={"grad_accum_dtype": "fp32"}),
    "states 1": settings(1, bf16={"enabled": True, **STATES}),
    "states 2": settings(2, bf16={"enabled": True, **STATES}),
    "states 3": settings(3, bf16={"enabled": True, **STATES}),
    "fp16 1": settings(1, fp16=SCALED),
    "fp16 2": settings(2, fp16=SCALED),
    "fp16 3": settings(3, fp16=SCALED),
    "fp16 3 offload": settings(3, zero=OFFLOAD, fp16=SCALED),
    "fixed 2": settings(2, fp16={"enabled": True, "loss_scale": 128}),
}


@contextmanager
def told(target: str) -> Iterator[Answers]:
    """The ranks joined, and rank 0's answers written when all went well."""
    answers: Answers = {}
    with distributed.joined():
        yield answers
        if distributed.rank() == 0:
            Path(target).write_text(json.dumps(answers))


def emulate_half() -> None:
    """Let DeepSpeed compute in fp16 on this CPU: slow, but it is the true code path."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def configurations(target: str, names: list[str]) -> None:
    """Each configuration: its curve, a resume, a resume from the one before, and refused steps."""
    with told(target) as answers:
        emulate_half()
        before: Saved | None = None
        for name in names:
            backend = zero(CASES[name], PULL)
            first = curve(backend, 0, SAVED_AT)
            saved = save(backend)
            on = [held_out(backend), curve(backend, SAVED_AT)]
            fresh = load(zero(CASES[name], PULL), saved)
            answer = {
                "curve": first + on[1],
                "on": on,
                "resumed": [held_out(fresh), curve(fresh, SAVED_AT)],
                "gaps": [saved.overlaps, saved.holes, len(saved.values)],
                "kinds": sorted({str(f.tensor.dtype) for f in fresh.fragments()}),
                "extra": saved.extra,
                "alone": _alone(saved) if name.startswith("fp32") else None,
            }
            backend.close()
            answer |= refusing(load(fresh, saved))
            if before is not None:
                load(fresh, before)
                answer["from the one before"] = [held_out(fresh), curve(fresh, SAVED_AT)]
            before = saved
            fresh.close()
            answers[name] = answer


def _alone(saved: Saved) -> list[Any]:
    """The same checkpoint gone on with by plain torch on one process."""
    alone = load(plain(PULL), saved)
    return [held_out(alone), curve(alone, SAVED_AT)]


def refusing(backend: Any) -> Answers:
    """Steps that a permit refuses, or whose loss is no number, change nothing but the counters."""
    saved, before = save(backend), mine(backend)
    asked: list[float] = []

    def refuse(norm: Any) -> bool:
        asked.append(float(norm))
        return False

    answer: Answers = {}
    skipped = backend.extra_state()["skipped_steps"]
    one_step(backend, 3, permit=refuse)
    answer["refused"] = [same_everywhere(before, mine(backend)), backend.skipped()]
    one_step(backend, 3, permit=refuse, spoil=True)
    answer["no number"] = [same_everywhere(before, mine(backend)), backend.skipped()]
    answer["asked"] = asked
    answer["counted"] = backend.extra_state()["skipped_steps"] - skipped
    # The loss scale goes its own way: what is no number lowers it.
    scale = {key: value for key, value in backend.extra_state().items() if key == "loss_scale"}
    one_step(backend, 4, permit=lambda _: True)
    after, norm = mine(backend), float(backend.gradient_norm())
    load(backend, saved).load_extra_state(saved.extra | scale)
    one_step(backend, 4)
    answer["as if never seen"] = same_everywhere(after, mine(backend))
    answer["norms"] = [norm, float(backend.gradient_norm())]
    answer["taken"] = not same_everywhere(before, after)
    return answer


def one_step(backend: Any, step: int, *, permit: Permit | None = None, spoil: bool = False) -> None:
    """A step at one rate, without the loop; ``spoil``: rank 1's last loss is no number."""
    goal = backend.learner.objective
    batches = tiny.step_batches(goal, step, backend.rank, backend.world, backend.accumulation)
    count = backend.sum_over_ranks(torch.tensor(float(sum(batch.count for batch in batches))))
    for index, batch in enumerate(batches):
        torch.manual_seed(step)
        loss = backend.forward(batch)
        if spoil and backend.rank == 1 and index == len(batches) - 1:
            loss = Loss(loss.total * float("nan"), loss.by_source, loss.measures)
        backend.backward(loss, count)
    backend.step(PEAK, permit)


def splits(target: str) -> None:
    """Norm, clipping and loss scale over splits of one global batch, at each stage."""
    with told(target) as answers:
        emulate_half()
        for stage in range(4):
            for micro in (4, 1):
                usual = {"stage3_param_persistence_threshold": 100000} if stage == 3 else {}
                values = settings(stage, micro=micro, zero=usual, gradient_clipping=0.1)
                backend = zero(values, PULL)
                answers[f"fp32 {stage} {micro}"] = curve(backend, 0, 3)
                backend.close()
        steady = {"enabled": True, "initial_scale_power": 10, "loss_scale_window": 1}
        for micro in (4, 1):
            backend = zero(settings(2, micro=micro, gradient_clipping=0.1, fp16=steady), PULL)
            answers[f"fp16 {micro}"] = curve(backend, 0, 3)
            answers[f"scale {micro}"] = backend.extra_state()
            backend.close()


def growing(target: str) -> None:
    """Two steps at a fixed scale and at one that doubles after the second: norm and moments."""
    with told(target) as answers:
        emulate_half()
        fixed = {"enabled": True, "loss_scale": 1024}
        grows = {"enabled": True, "initial_scale_power": 10, "loss_scale_window": 1}
        for stage in (1, 3):
            moments, norms, scales = [], [], []
            for fp16 in (fixed, grows):
                backend = zero(settings(stage, fp16=fp16, gradient_clipping=0))
                one_step(backend, 0)
                one_step(backend, 1)
                moments.append([f.tensor.clone() for f in backend.fragments() if f.key != "fp32"])
                norms.append(float(backend.gradient_norm()))
                scales.append(backend.extra_state()["loss_scale"]["cur_scale"])
                backend.close()
            answers[str(stage)] = [same_everywhere(*moments), norms, scales]


def one_after_another(target: str) -> None:
    """What is left of backends that were closed, and a plain model after them."""
    with told(target) as answers:
        linear = torch.nn.functional.linear
        for stage, more in ((3, {"zero_hpz_partition_size": 2}), (1, OFFLOAD), (3, OFFLOAD)):
            backend = zero(settings(stage, zero=more), PULL)
            answers[f"curve {stage} {next(iter(more))}"] = curve(backend, 0, 2)
            parameters = [weakref.ref(p) for p in backend.learner.parameters()]
            cut = [getattr(p, "ds_tensor", None) for p in backend.learner.parameters()]
            held = [partition for partition, _ in backend._state.partitions()]
            watched = [backend, *held, *filter(torch.is_tensor, cut)]
            left = [weakref.ref(each) for each in watched]
            backend.close()
            del backend, watched, cut, held
            gc.collect()
            values = sum(p().numel() for p in parameters if p() is not None)
            alive = sum(ref() is not None for ref in left)
            answers[f"left {stage} {next(iter(more))}"] = [alive, values]
            answers["linear"] = torch.nn.functional.linear is linear
        answers["after"] = curve(plain(PULL), 0, 2)


def kept(target: str) -> None:
    """What else it promises: rotary frequencies, LoRA's own weights, the smallest scale."""
    with told(target) as answers:
        emulate_half()
        for stage in (1, 3):
            llama = zero(settings(stage, "bf16"), shape="llama_tiny")
            curve(llama, 0, 2)
            rotary = [b for n, b in llama.learner.named_buffers() if n.endswith("inv_freq")]
            answers[f"rotary {stage}"] = [str(b.dtype) for b in rotary]
            llama.close()
        adapted = zero(settings(3), adaptation=LowRank(rank=4).build(0))
        answers["lora"] = curve(adapted, 0, 2)
        answers["lora names"] = sorted({piece.name for piece in adapted.fragments()})
        adapted.close()
        smallest = SCALED | {"initial_scale_power": 30, "min_loss_scale": 2**30}
        answers["smallest"] = _error(lambda: curve(zero(settings(2, fp16=smallest)), 0, 1))


def refused(target: str) -> None:
    """Errors of the device, and that every key of DeepSpeed's own blocks is known here."""
    with told(target) as answers:
        for name in ("zero1_fp16", "zero3_bf16_quantized"):
            small = read_deepspeed(name) | {"train_batch_size": 8}
            small["train_micro_batch_size_per_gpu"] = 2
            small["zero_optimization"].pop("zero_hpz_partition_size", None)
            answers[name] = _error(lambda values=small: zero(values))
        answers["unknown"] = _unknown_to_us()


def _unknown_to_us() -> list[str]:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero import config, offload_config

    from configs import deepspeed_keys as keys

    theirs = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization": config.DeepSpeedZeroConfig,
    }
    ours = set(keys._REFUSED_IN) | {
        f"{block}.{key}" for block, known in keys._BLOCKS.items() for key in known
    }
    ours |= {f"zero_optimization.{key}" for key in [*keys._ZERO, *keys._REFUSED_ZERO]}
    return sorted(
        f"{block}.{name}"
        for block, model in theirs.items()
        for key, field in model.model_fields.items()
        for name in {key, field.alias or key}
        if f"{block}.{name}" not in ours
    )


def presets(target: str) -> None:
    """A step with each preset that this CPU can honour, its batch and blocks made tiny."""
    with told(target) as answers:
        emulate_half()
        for path in sorted(PRESETS.glob("*.json")):
            values = read_deepspeed(path.stem)
            if values["zero_optimization"] == AUTO or "quantized" in path.stem:
                continue
            values |= {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
            if "zero_hpz_partition_size" in values["zero_optimization"]:
                values["zero_optimization"]["zero_hpz_partition_size"] = 2
            backend = zero(values)
            answers[path.stem] = curve(backend, 0, 1)[0][0]
            backend.close()


def waiting(target: str) -> None:
    """Work on one rank that takes longer than a collective may."""
    with told(target) as answers:
        _wait(answers)


def _wait(answers: Answers) -> None:
    own = distributed.rank()
    distributed.barrier()
    distributed_c10d._set_pg_timeout(COLLECTIVE_LIMIT)
    answers["on first"] = distributed.on_first(lambda: [sleep(LONG), own][1])
    if own == 1:
        sleep(LONG)
    distributed.wait_for_all()
    said = [
        _error(lambda: distributed.on_first(_fail_with(DataError("no such file")))),
        _error(lambda: distributed.on_first(_fail_with(ZeroDivisionError("by 0")))),
        _error(lambda: distributed.together(_fail_with(DataError("shard 1")) if own else int)),
    ]
    answers["told"] = distributed.all_gather_object(said)
    answers["together"] = distributed.all_gather_object(distributed.together(lambda: own))


def _fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _error(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
