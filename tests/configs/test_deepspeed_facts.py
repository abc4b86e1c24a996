"""What of a DeepSpeed JSON is in a stage's key."""

from typing import Any

import pytest

from configs.deepspeed_facts import MICRO_BATCH, computed, shared_out

BASE: dict[str, Any] = {
    "train_batch_size": 256,
    "train_micro_batch_size_per_gpu": 8,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
}


@pytest.mark.parametrize(
    "change",
    [
        {"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}},
        {"zero_optimization": "auto"},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        {"train_micro_batch_size_per_gpu": 16},
        {"gradient_accumulation_steps": 4},
        {"communication_data_type": "fp32"},
        {"steps_per_print": 10},
        {"gradient_clipping": 1.0},
        {"bf16": {"enabled": True, "bf16_optimizer_states": False}},
    ],
)
def test_how_the_work_is_shared_out_is_not_in_it(change: dict[str, Any]) -> None:
    assert computed(BASE | change) == computed(BASE)


LOW = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"train_batch_size": 512}, "global_batch"),
        ({"bf16": {"enabled": False}}, "precision"),
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"bf16": {"enabled": True, **LOW}}, "master_weights"),
        ({"bf16": {"enabled": True, **LOW}}, "optimizer_states"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_"),
    ],
)
def test_what_changes_the_numbers_is_in_it(change: dict[str, Any], fact: str) -> None:
    before, after = computed(BASE), computed(BASE | change)
    keys = before.keys() | after.keys()
    assert any(k.startswith(fact) and before.get(k) != after.get(k) for k in keys)


def test_fp16_scaling_counts_with_its_defaults() -> None:
    fp16 = BASE | {"bf16": {}, "fp16": {"enabled": True}}
    written_out = {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2}
    assert computed(fp16) == computed(fp16 | {"fp16": written_out})
    assert computed(fp16) != computed(fp16 | {"fp16": {**written_out, "hysteresis": 1}})
    assert computed(fp16 | {"fp16": {"enabled": True, "loss_scale": 128}})["loss_scale"] == 128


def test_the_shares_are_told_by_name() -> None:
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert shared_out(BASE | {"zero_optimization": offloaded}, "deepspeed", 2) == {
        "backend": "deepspeed",
        MICRO_BATCH: 8,
        "ZeRO stage": 2,
        "offload of optimizer": "cpu",
    }
    whole = {key: value for key, value in BASE.items() if not key.startswith("train_micro")}
    assert shared_out(whole, "plain", 1) == {"backend": "plain", MICRO_BATCH: 256}
