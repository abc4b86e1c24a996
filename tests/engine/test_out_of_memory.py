"""Too little memory: said once, with where, how much, and what has not been done about it yet."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.deepspeed_json import BatchPlan
from configs.errors import ResourceError
from engine import faults
from engine.hooks import CheckpointHook
from engine.out_of_memory import MemorySettings, OutOfMemory, is_out_of_memory, remedies

SETTINGS = MemorySettings(
    BatchPlan(global_batch=48, micro_batch=6, accumulation=2, world=4), length=128, zero_stage=1
)
FULL = replace(
    SETTINGS,
    batches=BatchPlan(4, 1, 1, 4),
    zero_stage=3,
    offloaded=frozenset({"optimizer", "param"}),
    every=1,
)


def allocate_too_much() -> None:
    torch.empty(1 << 50)


def allocate_too_much_by_numpy() -> None:
    np.ones(1 << 50)


def inject() -> None:
    faults.reached("forward", step=4)


@pytest.fixture
def memory_fault():
    faults.load("memory@forward:step=4")
    yield
    faults.load("")


@pytest.mark.usefixtures("memory_fault")
@pytest.mark.parametrize(
    ("act", "asked"),
    [
        (allocate_too_much, "4194304.00 GiB"),
        (allocate_too_much_by_numpy, "8.00 PiB"),
        (inject, "an unknown amount"),
    ],
)
def test_every_allocators_error_is_explained(act, asked):
    where = OutOfMemory("dapt", rank=3, settings=SETTINGS)
    where.enter("forward", 4)
    with pytest.raises(ResourceError) as caught, where.explained():
        act()
    told = str(caught.value)
    assert told.startswith("stage dapt: out of memory in 'forward' of step 5, rank 3, ")
    assert "micro-batches of 6 rows x 128 tokens" in told
    assert f"asked for {asked};" in told
    assert " GiB" in told.split(";")[1]
    for number, change in enumerate(remedies(SETTINGS), start=1):
        assert f"\n    {number}. {change}" in told
    assert caught.value.__cause__ is not None


def test_other_errors_pass():
    where = OutOfMemory("dapt", 0, SETTINGS)
    for error in (RuntimeError("shapes do not fit"), ValueError("out of memory")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), where.explained():
            raise error
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))


def test_remedies_go_from_the_cheapest_to_another_run():
    first, second, third, fourth, fifth, last = remedies(SETTINGS)
    assert "train_micro_batch_size_per_gpu: 3 (now 6): gradient accumulation 4 (now 2)" in first
    assert "global batch of 48" in first
    assert "activation_checkpointing: {every: 1} (now off)" in second
    assert "zero_optimization.stage: 2 (now 1): the gradients" in third
    assert "offload_optimizer" in fourth
    assert "data.length below 128" in fifth
    assert "lora" in last


def test_what_is_done_already_is_not_suggested():
    assert [change.split()[0] for change in remedies(FULL)] == ["data.length", "adaptation:"]


@pytest.mark.parametrize(
    ("changed", "absent"),
    [
        ({"can_recompute": False}, "activation_checkpointing"),
        ({"every": 1}, "activation_checkpointing"),
        ({"on_accelerator": False}, "offload"),
        ({"zero_stage": 2, "is_compiled": True}, "zero_optimization.stage"),
        ({"batches": BatchPlan(8, 2, 4, 1)}, "zero_optimization.stage"),
        ({"batches": BatchPlan(4, 1, 1, 4)}, "micro_batch"),
    ],
)
def test_what_would_not_help_is_not_suggested(changed, absent):
    told = "\n".join(remedies(SETTINGS))
    assert absent in told
    assert absent not in "\n".join(remedies(replace(SETTINGS, **changed)))


@pytest.mark.parametrize("phase", ["optimizer", CheckpointHook.name])
def test_activations_are_gone_when_the_optimizer_steps_and_the_state_is_saved(phase):
    told = "\n".join(remedies(SETTINGS, phase))
    assert "zero_optimization.stage: 2" in told
    assert not any(word in told for word in ("micro_batch", "activation", "data.length"))


def test_every_second_layer_may_become_every_layer():
    assert "{every: 1} (now every: 2)" in "\n".join(remedies(replace(SETTINGS, every=2)))


def test_parameters_are_offloaded_after_the_optimizer_at_stage_3_alone():
    done = replace(SETTINGS, offloaded=frozenset({"optimizer"}))
    assert "offload" not in "\n".join(remedies(done))
    assert "offload_param" in "\n".join(remedies(replace(done, zero_stage=3)))


def test_rows_of_a_rank_are_split_without_a_rest():
    odd = replace(SETTINGS, batches=BatchPlan(15, 5, 3, 1))
    assert "gpu: 1 (now 5): gradient accumulation 15 (now 3)" in remedies(odd)[0]
