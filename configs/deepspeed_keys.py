"""Every key of a DeepSpeed 0.19 JSON: passed on, the recipe's business, or refused with the reason.

DeepSpeed itself ignores top-level keys that it does not know, and takes the default where a value
is the word 'auto'; so a key or a value that would do nothing is told here, before anything starts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.deepspeed_json import AUTO, block, unexpected, zero_stage
from configs.errors import RecipeError
from configs.yaml_source import nearest


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of a key look like: in words, and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    # JSON writers write 500000000 as 5e8, which is read as a float.
    return _is_number(value) and value == value // 1


def _one_of(*choices: str) -> Kind:
    return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def _at_least(least: int) -> Kind:
    return Kind(
        f"a whole number, {least} or more", lambda value: _is_whole(value) and value >= least
    )


_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_COUNT = _at_least(0)
_POSITIVE = _at_least(1)
_EVEN = Kind(
    "an even number, 2 or more",
    lambda value: _is_whole(value) and value >= 2 and value % 2 == 0,
)
_INTEGER = Kind("a whole number", _is_whole)
_NUMBER = Kind("a number, 0 or more", lambda value: _is_number(value) and value >= 0)
_SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
_TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value),
)
_BLOCK = Kind("an object in braces", lambda value: isinstance(value, Mapping))
_TYPE = _one_of("fp32", "bf16", "fp16")

_LEVEL = _one_of("debug", "info", "warning", "error", "critical")
_TOP: dict[str, Kind] = {
    "train_batch_size": _POSITIVE,
    "train_micro_batch_size_per_gpu": _POSITIVE,
    "gradient_accumulation_steps": _POSITIVE,
    "gradient_clipping": _NUMBER,
    "gradient_predivide_factor": _NUMBER,
    "prescale_gradients": _FLAG,
    "gradient_allreduce_op": _one_of("mean"),
    "managed_gradient_accumulation": Kind("true", lambda value: value is True),
    "communication_data_type": _TYPE,
    "bf16": _BLOCK,
    "fp16": _BLOCK,
    "data_types": _BLOCK,
    "zero_optimization": Kind(
        "an object in braces, or 'auto'", lambda v: _BLOCK.fits(v) or v == AUTO
    ),
    "zero_allow_untested_optimizer": _FLAG,
    "zero_force_ds_cpu_optimizer": _FLAG,
    "steps_per_print": _POSITIVE,
    "wall_clock_breakdown": _FLAG,
    "memory_breakdown": _FLAG,
    "dump_state": _FLAG,
    "log_level": _LEVEL,
    "comms_logger": _BLOCK,
    "flops_profiler": _BLOCK,
    "timers": _BLOCK,
    "disable_python_gc": _FLAG,
}
_ANY, _SHARDED, _PARTITIONED, _FLAT = {0, 1, 2, 3}, {3}, {1, 2, 3}, {1, 2}
_STAGE_3: dict[str, Kind] = {
    "prefetch_bucket_size": _COUNT,
    "param_persistence_threshold": _COUNT,
    "model_persistence_threshold": _COUNT,
    "max_live_parameters": _COUNT,
    "max_reuse_distance": _COUNT,
    "module_granularity_threshold": _COUNT,
    "use_all_reduce_for_fetch_params": _FLAG,
    "allgather_sequential": _FLAG,
}
_ZERO: dict[str, tuple[Kind, set[int]]] = {
    "stage": (_INTEGER, _ANY),
    "offload_optimizer": (_BLOCK, _PARTITIONED),
    "contiguous_gradients": (_FLAG, _PARTITIONED),
    "overlap_comm": (_FLAG, _PARTITIONED),
    "reduce_bucket_size": (_POSITIVE, _PARTITIONED),
    "reduce_scatter": (_FLAG, _PARTITIONED),
    "allgather_bucket_size": (_EVEN, _FLAT),
    "use_multi_rank_bucket_allreduce": (_FLAG, _FLAT),
    "round_robin_gradients": (_FLAG, _FLAT),
    "parameter_alignment": (_FLAG, _FLAT),
    "ignore_unused_parameters": (_FLAG, _FLAT),
    "compute_grad_norm": (Kind("true", lambda value: value is True), _ANY),
    "offload_param": (_BLOCK, _SHARDED),
    "sub_group_size": (_COUNT, _SHARDED),
    "zero_hpz_partition_size": (_POSITIVE, _SHARDED),
    "zero_quantized_weights": (_FLAG, _SHARDED),
    "zero_quantized_nontrainable_weights": (_FLAG, _SHARDED),
    "zero_quantized_gradients": (_FLAG, _SHARDED),
    "memory_efficient_linear": (_FLAG, _SHARDED),
    "override_module_apply": (_FLAG, _SHARDED),
    "log_trace_cache_warnings": (_FLAG, _SHARDED),
    "enable_sanity_checks": (_FLAG, _SHARDED),
    "leaf_module": (_BLOCK, _SHARDED),
    **{f"stage3_{key}": (kind, _SHARDED) for key, kind in _STAGE_3.items()},
    **{key: (kind, _SHARDED) for key, kind in _STAGE_3.items()},
}
_OFFLOAD: dict[str, Kind] = {
    "device": _one_of("none", "cpu", "nvme"),
    "pin_memory": _FLAG,
    "nvme_path": _TEXT,
    "buffer_count": _POSITIVE,
}
_BLOCKS: dict[str, dict[str, Kind]] = {
    "bf16": {
        "enabled": _FLAG,
        "check_grad_overflow": _FLAG,
        "bf16_master_weights_and_grads": _FLAG,
        "bf16_optimizer_states": _FLAG,
    },
    "fp16": {
        "enabled": _FLAG,
        "loss_scale": _NUMBER,
        "initial_scale_power": _COUNT,
        "loss_scale_window": _POSITIVE,
        "hysteresis": _POSITIVE,
        "consecutive_hysteresis": _FLAG,
        "min_loss_scale": _POSITIVE,
    },
    "data_types": {
        "grad_accum_dtype": _TYPE,
        "param_dtype": _TYPE,
        "keep_in_fp32_modules": Kind(
            "'auto' or a list of texts", lambda value: value == AUTO or _TEXTS.fits(value)
        ),
    },
    "comms_logger": {
        "enabled": _FLAG,
        "prof_all": _FLAG,
        "prof_ops": _TEXTS,
        "verbose": _FLAG,
        "debug": _FLAG,
    },
    "flops_profiler": {
        "enabled": _FLAG,
        "recompute_fwd_factor": _NUMBER,
        "profile_step": _POSITIVE,
        "module_depth": _INTEGER,
        "top_modules": _POSITIVE,
        "detailed": _FLAG,
        "output_file": Kind("a text or null", lambda value: value is None or _TEXT.fits(value)),
    },
    "timers": {"throughput": _BLOCK},
    "timers.throughput": {"enabled": _FLAG, "synchronized": _FLAG},
    "zero_optimization.offload_optimizer": {
        **_OFFLOAD,
        "pipeline_read": _FLAG,
        "pipeline_write": _FLAG,
        "fast_init": _FLAG,
        "ratio": _SHARE,
        "super_offload": _FLAG,
        "cpuadam_cores_perc": _SHARE,
    },
    "zero_optimization.offload_param": {
        **_OFFLOAD,
        "buffer_size": _POSITIVE,
        "max_in_cpu": _COUNT,
    },
    "zero_optimization.leaf_module": {
        "classes": _TEXTS,
        "names": _TEXTS,
        "name_suffixes": _TEXTS,
    },
}

_RECIPES = "belongs to the recipe's '{}'; remove it here"
_BOARD = "the run folder holds metrics.jsonl and a TensorBoard already; remove it"
_GONE = "DeepSpeed has removed it; remove it here"
_OTHER = "another kind of parallelism, which is not built here; remove it"
_NOT_READ = "DeepSpeed reads it no longer, so it would do nothing; remove it"
_CHECKPOINTS = "checkpoints are written and read by Onward alone; remove it"
_REFUSED: dict[str, str] = {
    "optimizer": _RECIPES.format("optimizer"),
    "scheduler": _RECIPES.format("schedule"),
    "activation_checkpointing": _RECIPES.format("activation_checkpointing"),
    "compile": _RECIPES.format("compile"),
    "data_efficiency": _RECIPES.format("data"),
    "dataloader_drop_last": _RECIPES.format("data"),
    "vocabulary_size": _RECIPES.format("model"),
    "tensorboard": _BOARD,
    "wandb": _BOARD,
    "csv_monitor": _BOARD,
    "comet": _BOARD,
    "checkpoint": _CHECKPOINTS,
    "datastates_ckpt": _CHECKPOINTS,
    "nebula": _GONE,
    "compression_training": _GONE,
    "amp": f"{_GONE}; use bf16 or fp16",
    "quantize_training": _GONE,
    "sparse_gradients": _GONE,
    "eigenvalue": _GONE,
    "sparse_attention": _GONE,
    "elasticity": "DeepSpeed has removed it; a run goes on with any number of ranks as it is",
    "graph_harvesting": _GONE,
    "curriculum_learning": _GONE,
    "progressive_layer_drop": _GONE,
    "torch_autocast": "is not supported: it computes by other rules than checkpoints know; "
    "use bf16 or fp16",
    "bfloat16": "the old name; write bf16",
    "disable_allgather": _NOT_READ,
    "autotuning": "it would end the process after its trial; use 'onward plan'",
    "hybrid_engine": "it is for generating text; remove it",
    "weight_quantization": "it is for inference; remove it",
    "aio": "it is for offload to nvme, which is not supported; remove it",
    "pipeline": _OTHER,
    "tensor_parallel": _OTHER,
    "sequence_parallel_size": _OTHER,
    "seq_parallel_communication_data_type": _OTHER,
    "expert_parallel": _OTHER,
    "use_data_before_expert_parallelism": _OTHER,
}
_REFUSED_ZERO: dict[str, str] = {
    "zenflow": "is not supported: it defers parts of a step, which could not be saved exactly",
    "legacy_stage1": _GONE,
    "mics_shard_size": _GONE,
    "mics_hierarchical_params_gather": _GONE,
    "zeropp_loco_param": _GONE,
    "cpu_offload": "the old name; write offload_optimizer: {device: cpu}",
    "cpu_offload_params": "the old name; write offload_param: {device: cpu}",
    "cpu_offload_param": "the old name; write offload_param: {device: cpu}",
    "cpu_offload_use_pin_memory": "the old name; write pin_memory into the offload block",
    "allgather_partitions": _NOT_READ,
    "elastic_checkpoint": _CHECKPOINTS,
    "load_from_fp32_weights": _CHECKPOINTS,
    "pipeline_loading_checkpoint": _CHECKPOINTS,
    "gather_16bit_weights_on_model_save": _CHECKPOINTS,
    "stage3_gather_16bit_weights_on_model_save": _CHECKPOINTS,
    "stage3_gather_fp16_weights_on_model_save": _CHECKPOINTS,
    "save_muon_momentum_buffer_in_memory": "it is for DeepSpeed's own Muon; remove it",
}
_REFUSED_IN: dict[str, str] = {
    "bf16.immediate_grad_update": "it belongs to an optimizer wrapper that is not used; remove it",
    "fp16.auto_cast": "there are no floating-point inputs to cast; remove it",
    "fp16.fp16_master_weights_and_grads": "it needs DeepSpeed's own CPU Adam, but the optimizer "
    "is the recipe's; remove it",
    "data_types.buffer_dtype": "rotary frequencies must stay in fp32; remove it",
}


def check_keys(values: Mapping[str, Any]) -> None:
    """Each key is known, does something at this stage, and has a value of its kind.

    Raises:
        RecipeError: names the key, what was given, and what is expected.
    """
    for key, given in values.items():
        _check_one(key, given, _TOP, _REFUSED)
    for path, given in _blocks(values):
        for key, value in given.items():
            full = f"{path}.{key}"
            _check_one(full, value, _prefixed(path), _REFUSED_IN)
    if values.get("zero_optimization") != AUTO:
        _check_zero(block(values, "zero_optimization"), zero_stage(values))


def _check_zero(zero: Mapping[str, Any], stage: int) -> None:
    prefix = "zero_optimization."
    known = {f"{prefix}{key}": kind for key, (kind, _) in _ZERO.items()}
    refused = {f"{prefix}{key}": why for key, why in _REFUSED_ZERO.items()}
    for key, given in zero.items():
        _check_one(f"{prefix}{key}", given, known, refused)
        stages = _ZERO[key][1]
        if stage not in stages and not _is_off(key, given):
            msg = (
                f"DeepSpeed config: {prefix}{key}: it does nothing at ZeRO stage {stage}, only at "
                f"{_spoken(stages)}; remove it or change the stage"
            )
            raise RecipeError(msg)
        if key in _STAGE_3 and f"stage3_{key}" in zero:
            msg = f"DeepSpeed config: {prefix}{key} and {prefix}stage3_{key} are one setting"
            raise RecipeError(msg)


def _is_off(key: str, given: Any) -> bool:
    return key.startswith("offload_") and given.get("device", "none") == "none"


def _check_one(
    path: str, given: object, known: Mapping[str, Kind], refused: Mapping[str, str]
) -> None:
    if path in refused:
        raise RecipeError(f"DeepSpeed config: '{path}' {_sentence(refused[path])}")
    if path not in known:
        raise RecipeError(f"DeepSpeed config: {path}: unknown key; {_hint(path, known, refused)}")
    if not known[path].fits(given):
        raise unexpected(path, given, known[path].expected)


def _hint(path: str, known: Mapping[str, Kind], refused: Mapping[str, str]) -> str:
    if path in _ZERO or path in _REFUSED_ZERO:
        return "it belongs into zero_optimization"
    return nearest(path, [*known, *refused])


def _sentence(why: str) -> str:
    return why if why.startswith(("belongs", "is ")) else f"is refused: {why}"


def _blocks(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The blocks that are there, with their dotted paths."""
    for path in _BLOCKS:
        found: Any = values
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None:
            continue
        if not isinstance(found, Mapping):
            raise unexpected(path, found, _BLOCK.expected)
        yield path, found


def _prefixed(path: str) -> dict[str, Kind]:
    return {f"{path}.{key}": kind for key, kind in _BLOCKS[path].items()}


def _spoken(stages: set[int]) -> str:
    *first, last = (str(stage) for stage in sorted(stages))
    return f"{', '.join(first)} and {last}" if first else last
