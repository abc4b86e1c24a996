"""Which keys and combinations of a DeepSpeed JSON are refused, and how the message helps."""

from typing import Any

import pytest

from configs.deepspeed_checks import check_deepspeed, check_world
from configs.deepspeed_json import PRESETS, read_deepspeed
from configs.errors import RecipeError

BF16 = {"bf16": {"enabled": True}}
STATES = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
CPU = {"device": "cpu"}
AUTO = {"zero_optimization": "auto"}


def values(stage: int = 1, zero: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "train_batch_size": 8,
        "zero_optimization": {"stage": stage, **(zero or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    } | more


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_passes(path) -> None:
    check_deepspeed(read_deepspeed(path.stem))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_is_silent(path) -> None:
    # DeepSpeed waits for the device at every step when it is to print now and then.
    assert "steps_per_print" not in read_deepspeed(path.stem)


@pytest.mark.parametrize(
    "given",
    [
        values(0),
        values(1, {"offload_optimizer": CPU, "round_robin_gradients": True}, **BF16),
        values(1, prescale_gradients=True, gradient_predivide_factor=2.0),
        values(2, {"allgather_bucket_size": 5e8}, data_types={"grad_accum_dtype": "fp32"}, **BF16),
        values(1, {"offload_optimizer": {"device": "none"}}),
        values(2, bf16={"enabled": True, **STATES}),
        values(3, {"stage3_max_live_parameters": 1000000000, "sub_group_size": 1e8}),
        values(3, {"offload_param": CPU, "offload_optimizer": CPU}, fp16={"enabled": True}),
        values(1, fp16={"enabled": True, "loss_scale": 128}),
        values(1, fp16={"enabled": False}, bf16={"enabled": False}),
        values(**AUTO, **BF16),
        values(**AUTO, data_types={"grad_accum_dtype": "fp32"}, **BF16),
        values(**AUTO, prescale_gradients=True),
    ],
)
def test_what_can_be_honoured_passes(given: dict[str, Any]) -> None:
    check_deepspeed(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (values(optimizer={"type": "Adam"}), "'optimizer' belongs to the recipe's 'optimizer'"),
        (values(activation_checkpointing={}), "the recipe's 'activation_checkpointing'"),
        (values(elasticity={}), "'elasticity' is refused: DeepSpeed has removed it"),
        (values(tensorboard={"enabled": True}), "'tensorboard' is refused: the run folder holds"),
        (values(checkpoint={}), "'checkpoint' is refused: checkpoints are written"),
        (values(torch_autocast={"enabled": True}), "'torch_autocast' is not supported"),
        (values(bfloat16={"enabled": True}), "the old name; write bf16"),
        (values(gradient_cliping=1.0), "unknown key; did you mean 'gradient_clipping'"),
        (values(overlap_comm=True), "overlap_comm: unknown key; it belongs into zero_optimization"),
        (values(1, {"overlap_com": True}), r"did you mean 'zero_optimization\.overlap_comm'"),
        (values(1, {"overlap_comm": "auto"}), "expected true or false; given: 'auto'; 'auto' is"),
        (values(1, {"reduce_bucket_size": 0}), "expected a whole number, 1 or more"),
        (values(1, {"allgather_bucket_size": 3}), "expected an even number"),
        (values(1, {"cpu_offload": True}), r"write offload_optimizer: \{device: cpu\}"),
        (values(3, {"mics_shard_size": 2}), "DeepSpeed has removed it"),
        (values(2, {"zenflow": {}}), "zenflow' is not supported"),
        (values(1, {"compute_grad_norm": False}), "compute_grad_norm: expected true; given: False"),
        (values(managed_gradient_accumulation=False), "expected true; given: False"),
        (values(gradient_allreduce_op="sum"), "expected one of mean; given: 'sum'"),
        (values(0, {"overlap_comm": True}), "does nothing at ZeRO stage 0, only at 1, 2 and 3"),
        (values(2, {"zero_hpz_partition_size": 2}), "nothing at ZeRO stage 2, only at 3"),
        (values(3, {"round_robin_gradients": True}), "nothing at ZeRO stage 3, only at 1 and 2"),
        (values(2, {"offload_param": CPU}), "offload_param: it does nothing at ZeRO stage 2"),
        (
            values(3, {"stage3_max_live_parameters": 1, "max_live_parameters": 1}),
            "are one setting",
        ),
        (values(1, {"offload_optimizer": {"device": "disk"}}), "expected one of none, cpu, nvme"),
        (values(1, {"offload_optimizer": {"devices": "cpu"}}), "did you mean '.*device'"),
        (values(3, {"offload_optimizer": {"device": "nvme"}}), "nvme is not supported"),
        (values(3, {"offload_optimizer": CPU | {"ratio": 0.5}}), "in part"),
        (values(3, {"offload_optimizer": CPU | {"super_offload": True}}), "super_offload"),
        (
            values(3, {"offload_optimizer": CPU | {"nvme_path": "/x"}}),
            "nvme_path: it is for",
        ),
        (values(1, {"offload_optimizer": {"pin_memory": True}}), "device is none"),
        (values(1, aio={}), "'aio' is refused: it is for offload to nvme"),
        (values(**AUTO, zero_allow_untested_optimizer=False), "zero_allow_untested_optimizer"),
        (values(**AUTO, zero_force_ds_cpu_optimizer=True), "(which 'auto' may choose)"),
        (values(**AUTO, gradient_predivide_factor=0), "gradient_predivide_factor"),
        (values(**AUTO, bf16={"enabled": True, "bf16_optimizer_states": True}), "set both"),
        (values(1, {"offload_optimizer": CPU}, zero_force_ds_cpu_optimizer=True), "must be false"),
        (values(1, zero_allow_untested_optimizer=False), "must be true"),
        (values(0, **BF16), "stage 0 runs another code path"),
        (values(0, fp16={"enabled": True}), "use stage 1"),
        (values(1, bf16={"enabled": True, "check_overflow": True}), "check_grad_overflow"),
        (values(3, bf16={"enabled": True, "check_grad_overflow": False}), "at ZeRO stage 3"),
        (values(1, bf16={"bf16_optimizer_states": True}), "nothing unless bf16.enabled is true"),
        (values(1, bf16={"enabled": True, "immediate_grad_update": True}), "immediate_grad_update"),
        (
            values(1, bf16={"enabled": True, "bf16_master_weights_and_grads": True}),
            "without bf16_optimizer_states",
        ),
        (
            values(1, {"offload_optimizer": CPU}, bf16={"enabled": True, **STATES}),
            "with offload_optimizer DeepSpeed wants its own CPU Adam",
        ),
        (values(1, fp16={"enabled": True, "loss_scale": 8, "hysteresis": 1}), "fixes the scale"),
        (values(1, fp16={"enabled": True, "loss_scale": True}), "expected a number"),
        (values(1, fp16={"enabled": True, "fp16_master_weights_and_grads": True}), "CPU Adam"),
        (values(1, data_types={"grad_accum_dtype": "fp32"}, **BF16), "use stage 2"),
        (values(1, data_types={"grad_accum_dtype": "bf16"}), "it is the precision, or fp32"),
        (values(1, data_types={"param_dtype": "fp16"}, **BF16), "the weights are bf16"),
        (values(1, data_types={"buffer_dtype": "bf16"}, **BF16), "rotary frequencies"),
        (values(1, communication_data_type="fp16", **BF16), "it is the precision, or fp32"),
        (values(2, prescale_gradients=True), "not at ZeRO stage 2"),
        (
            values(3, {"zero_quantized_gradients": True, "reduce_scatter": False}),
            "it needs reduce_scatter",
        ),
        ({"zero_optimization": {"stage": 0}}, "train_batch_size is missing"),
    ],
)
def test_what_could_not_be_honoured_is_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_deepspeed(given)


def test_ranks_of_a_second_copy_must_divide_all_ranks() -> None:
    given = values(3, {"zero_hpz_partition_size": 2})
    check_world(given, 4)
    with pytest.raises(RecipeError, match="2 does not divide 3 ranks"):
        check_world(given, 3)
    with pytest.raises(RecipeError, match="2 does not divide 1 ranks"):
        check_world(given, 1)
