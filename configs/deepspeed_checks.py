"""What a DeepSpeed JSON must not combine, because it could not be honoured exactly.

Facts about DeepSpeed 0.19.8, each found in its sources and tried; ``check_deepspeed`` is all that
``onward check`` needs, and starts nothing.
"""

from collections.abc import Mapping
from typing import Any

from configs.deepspeed_json import (
    AUTO,
    block,
    global_batch,
    gradient_clipping,
    offload_device,
    precision,
    zero_stage,
)
from configs.deepspeed_keys import check_keys
from configs.errors import RecipeError

_DYNAMIC = (
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
)
_NVME_ALONE = (
    "nvme_path",
    "buffer_count",
    "buffer_size",
    "max_in_cpu",
    "pipeline_read",
    "pipeline_write",
    "fast_init",
)
QUANTIZED = (
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
)


def check_deepspeed(values: Mapping[str, Any]) -> None:
    """All that can be told without processes: keys, values and combinations.

    Raises:
        RecipeError: the first thing that could not be honoured, and what to do.
    """
    check_keys(values)
    global_batch(values)
    gradient_clipping(values)
    if block_or_auto(values) == AUTO:
        _check_auto(values)
    else:
        _check_combination(values)


def honours(values: Mapping[str, Any], zero: Mapping[str, Any]) -> bool:
    """Whether these ZeRO settings in the place of "auto" go with the rest."""
    try:
        _check_combination({**values, "zero_optimization": zero})
    except RecipeError:
        return False
    return True


def _check_auto(values: Mapping[str, Any]) -> None:
    """Whatever "auto" may come to takes the recipe's optimizer; and some stage honours the rest."""
    away = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    _check_optimizer({**values, "zero_optimization": away})
    stages = [{"stage": stage} for stage in (1, 2, 3)]
    if not any(honours(values, zero) for zero in stages):
        _check_combination({**values, "zero_optimization": stages[0]})


def _check_combination(values: Mapping[str, Any]) -> None:
    _check_precision(values)
    _check_types(values)
    _check_states(values)
    _check_reduction(values)
    _check_optimizer(values)
    for part in ("optimizer", "param"):
        _check_offload(values, part)


def check_world(values: Mapping[str, Any], world: int) -> None:
    """What depends on the number of ranks; RecipeError if it does not fit."""
    if block_or_auto(values) == AUTO:
        return
    size = block(values, "zero_optimization").get("zero_hpz_partition_size", 1)
    if world % size:
        raise _refused(
            "zero_optimization.zero_hpz_partition_size",
            f"{size} does not divide {world} ranks; it is the number of ranks in a host",
        )


def block_or_auto(values: Mapping[str, Any]) -> object:
    """``zero_optimization`` as it stands: an object, or the word that asks for a plan."""
    return values.get("zero_optimization", {})


def _check_precision(values: Mapping[str, Any]) -> None:
    kind = precision(values)
    for other in ("bf16", "fp16"):
        ignored = sorted(set(block(values, other)) - {"enabled"})
        if other != kind and ignored:
            raise _refused(
                f"{other}.{ignored[0]}", f"it does nothing unless {other}.enabled is true"
            )
    fp16 = block(values, "fp16")
    dynamic = [key for key in _DYNAMIC if key in fp16]
    if fp16.get("loss_scale", 0) > 0 and dynamic:
        raise _refused(
            f"fp16.{dynamic[0]}",
            "it is of dynamic scaling, but fp16.loss_scale fixes the scale; remove one of them",
        )
    if kind == "fp32" or zero_stage(values) > 0:
        return
    msg = (
        f"DeepSpeed config: {kind} at ZeRO stage 0 runs another code path, which drifts from "
        "the other stages and has no fp32 state to save; use stage 1, its partition of the "
        "optimizer costs nothing more"
    )
    raise RecipeError(msg)


def _check_types(values: Mapping[str, Any]) -> None:
    kind, types = precision(values), block(values, "data_types")
    if types.get("param_dtype", kind) != kind:
        raise _refused("data_types.param_dtype", f"the weights are {kind}; remove it")
    accumulated = types.get("grad_accum_dtype", kind)
    if accumulated not in {kind, "fp32"}:
        raise _refused("data_types.grad_accum_dtype", "it is the precision, or fp32; remove it")
    offloaded = offload_device(values, "optimizer") != "none"
    if kind == "bf16" and accumulated == "fp32" and zero_stage(values) == 1 and not offloaded:
        raise _refused(
            "data_types.grad_accum_dtype",
            "fp32 at ZeRO stage 1 is another optimizer wrapper of DeepSpeed's, which is not "
            "supported; use stage 2, which accumulates in fp32, too",
        )
    sent = values.get("communication_data_type", kind)
    if sent not in {kind, "fp32"}:
        raise _refused("communication_data_type", "it is the precision, or fp32; remove it")
    if "check_grad_overflow" in block(values, "bf16") and zero_stage(values) == 3:
        raise _refused("bf16.check_grad_overflow", "it does nothing at ZeRO stage 3; remove it")


def _check_states(values: Mapping[str, Any]) -> None:
    """Bf16 states: DeepSpeed takes any optimizer's only if all of them are bf16, on the device."""
    bf16 = block(values, "bf16")
    weights = bf16.get("bf16_master_weights_and_grads", False)
    states = bf16.get("bf16_optimizer_states", False)
    if weights != states:
        given = "bf16_master_weights_and_grads" if weights else "bf16_optimizer_states"
        other = "bf16_optimizer_states" if weights else "bf16_master_weights_and_grads"
        raise _refused(
            f"bf16.{given}", f"without {other} DeepSpeed wants its own CPU Adam; set both, or none"
        )
    if weights and offload_device(values, "optimizer") != "none":
        raise _refused(
            "bf16.bf16_master_weights_and_grads",
            "with offload_optimizer DeepSpeed wants its own CPU Adam; remove one of the two",
        )


def _check_reduction(values: Mapping[str, Any]) -> None:
    zero, stage = block(values, "zero_optimization"), zero_stage(values)
    asked = [
        key
        for key, usual in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0))
        if values.get(key, usual) != usual
    ]
    if asked and stage > 1:
        raise _refused(asked[0], f"not at ZeRO stage {stage}; remove it or use stage 1")
    if values.get("gradient_predivide_factor", 1.0) == 0:
        raise _refused("gradient_predivide_factor", "gradients are divided by it; give 1 or more")
    if zero.get("zero_quantized_gradients") and not zero.get("reduce_scatter", True):
        raise _refused("zero_optimization.zero_quantized_gradients", "it needs reduce_scatter")


def _check_optimizer(values: Mapping[str, Any]) -> None:
    if zero_stage(values) > 0 and not values.get("zero_allow_untested_optimizer", False):
        msg = (
            "DeepSpeed config: zero_allow_untested_optimizer must be true, because the optimizer "
            "comes from the recipe"
        )
        raise RecipeError(msg)
    offloaded = offload_device(values, "optimizer") != "none"
    if offloaded and values.get("zero_force_ds_cpu_optimizer", True):
        msg = (
            "DeepSpeed config: zero_force_ds_cpu_optimizer must be false with offload_optimizer "
            "(which 'auto' may choose), because the optimizer comes from the recipe"
        )
        raise RecipeError(msg)


def _check_offload(values: Mapping[str, Any], part: str) -> None:
    path = f"zero_optimization.offload_{part}"
    given, device = (
        block(block(values, "zero_optimization"), f"offload_{part}"),
        offload_device(values, part),
    )
    if device == "nvme":
        raise _refused(
            f"{path}.device",
            "nvme is not supported: what lies in DeepSpeed's swap files could not be saved and "
            "resumed exactly; use cpu, which takes 18 bytes a parameter of host memory",
        )
    if given.get("ratio", 1.0) != 1.0 or given.get("super_offload", False):
        raise _refused(path, "in part (ratio, super_offload) needs DeepSpeed's own CPU Adam")
    if "cpuadam_cores_perc" in given:
        raise _refused(f"{path}.cpuadam_cores_perc", "it belongs to super_offload; remove it")
    if ignored := [key for key in _NVME_ALONE if key in given]:
        raise _refused(
            f"{path}.{ignored[0]}", "it is for offload to nvme, which is not supported; remove it"
        )
    if device == "none" and set(given) - {"device"}:
        raise _refused(path, "device is none, so the rest does nothing; remove the block")


def _refused(key: str, why: str) -> RecipeError:
    return RecipeError(f"DeepSpeed config: {key}: {why}")
