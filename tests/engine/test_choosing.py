"""Which ZeRO settings "auto" comes to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from configs.devices import GIB, Device, find_device
from configs.errors import RecipeError, ResourceError
from engine.activations import Pass
from engine.choosing import Split, choose, recomputing_would, resolve, usable, warning
from engine.planner import Group, Job, Weights

OURS: dict[str, Any] = {
    "zero_optimization": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
BF16: dict[str, Any] = {"bf16": {"enabled": True}, **OURS}
H100 = find_device("h100")


ROWS = 64
SMALL_HOST = dataclasses.replace(H100, host=100 * GIB)


def jobs(parameters: int, values: Mapping[str, Any] = BF16, per_row: int = GIB) -> Any:
    layer = 50_000_000
    weights = Weights((Group((layer,) * (parameters // layer)), Group((1000,) * 10)))

    def make(split: Split) -> Job:
        whole = per_row * split.micro_batch
        work = Pass(whole if split.recomputed_every is None else whole // 10, 0, 0, 0)
        accumulation = ROWS // split.world // split.micro_batch
        return Job(weights, values, split.world, accumulation, work)

    return make


def stage(parameters: int, world: int, values: Mapping[str, Any] = BF16) -> Any:
    return choose(jobs(parameters, values), Split(world, 4, None), H100).zero


@pytest.mark.parametrize(
    ("parameters", "world", "expected"),
    [(10**8, 1, 1), (10**8, 8, 1), (2 * 10**9, 1, 1), (15 * 10**9, 8, 2), (20 * 10**9, 8, 3)],
)
def test_the_lowest_stage_that_fits(parameters: int, world: int, expected: int) -> None:
    zero = stage(parameters, world)
    assert zero["stage"] == expected
    assert "offload_optimizer" not in zero


def test_fp32_needs_no_zero_where_it_fits() -> None:
    assert stage(10**8, 2, OURS) == {"stage": 0}


def test_the_host_helps_where_no_stage_fits() -> None:
    zero = stage(8 * 10**9, 1)
    assert zero["offload_optimizer"] == {"device": "cpu"}
    low = {"enabled": True, "bf16_optimizer_states": True, "bf16_master_weights_and_grads": True}
    assert "offload_optimizer" not in stage(5 * 10**9, 1, BF16 | {"bf16": low})


def test_nothing_is_chosen_that_the_rest_of_the_json_forbids() -> None:
    summed = BF16 | {"data_types": {"grad_accum_dtype": "fp32"}}
    assert stage(10**8, 2, summed)["stage"] == 2
    scaled = BF16 | {"prescale_gradients": True}
    assert stage(10**8, 2, scaled)["stage"] == 1
    with pytest.raises(ResourceError, match="at the least, with ZeRO stage 1"):
        stage(20 * 10**9, 8, scaled)


def test_no_stage_is_chosen_that_the_recipe_does_not_go_with() -> None:
    make = jobs(20 * 10**9, BF16)
    assert choose(make, Split(8, 4, None), H100).zero["stage"] == 3

    def compiled(split: Split) -> Job:
        return dataclasses.replace(make(split), most_stage=2)

    assert choose(compiled, Split(8, 4, None), H100).zero["stage"] < 3


def test_what_would_fit_is_told() -> None:
    with pytest.raises(ResourceError) as caught:
        choose(jobs(10**8, per_row=20 * GIB), Split(1, 8, None), H100)
    told = str(caught.value)
    assert "does not fit H100 80GB: at the least, with ZeRO stage" in told
    assert "what would fit: train_micro_batch_size_per_gpu: 2, or activation_checkpointing" in told
    with pytest.raises(ResourceError, match=r"what would fit: \d+ ranks"):
        choose(jobs(30 * 10**9), Split(1, 1, 1), SMALL_HOST)
    with pytest.raises(ResourceError, match="neither a smaller micro-batch nor recomputing"):
        choose(jobs(10**8, per_row=999 * GIB), Split(1, 1, 1), H100)


def test_what_is_told_to_fit_fits() -> None:
    given = jobs(10**8, per_row=20 * GIB)
    assert choose(given, Split(1, 2, None), H100).memory.peak <= usable(H100)
    assert choose(given, Split(1, 8, 1), H100).memory.peak <= usable(H100)


def test_before_the_host_recomputing_is_named_where_it_fits_on_the_device() -> None:
    given = jobs(2 * 10**9, per_row=15 * GIB)
    asked = Split(1, 4, None)
    assert choose(given, asked, H100).is_on_host
    told = recomputing_would(given, asked, H100)
    assert told == "with activation_checkpointing: {every: 1} ZeRO stage 1 fits on the device"
    assert not choose(given, dataclasses.replace(asked, recomputed_every=1), H100).is_on_host
    own = recomputing_would(given, asked, H100, {"stage": 3})
    assert own is not None
    assert "ZeRO stage 3 fits" in own
    # It is so already, and: too large for the device, recomputed or not.
    assert recomputing_would(given, Split(1, 4, 1), H100) is None
    assert recomputing_would(jobs(20 * 10**9), asked, H100) is None


def test_where_nothing_fits_recomputing_is_told_of_with_its_stage() -> None:
    with pytest.raises(ResourceError, match=r"\{every: 1\} ZeRO stage 1 fits on the device$"):
        choose(jobs(10**8, per_row=20 * GIB), Split(1, 8, None), H100)


def test_too_little_of_the_host_is_told() -> None:
    with pytest.raises(ResourceError, match=r"and \d+ of the 80 GiB that it may use of its h"):
        choose(jobs(30 * 10**9), Split(1, 1, 1), SMALL_HOST)


def test_only_auto_is_replaced() -> None:
    split = Split(2, 4, None)
    values = BF16 | {"gradient_clipping": 0.5}
    resolved, option = resolve(values, jobs(10**8), split, H100)
    assert option is not None
    assert resolved == values | {"zero_optimization": dict(option.zero)}
    own = BF16 | {"zero_optimization": {"stage": 2}}
    assert resolve(own, jobs(10**8), split, H100) == (own, None)


def test_a_needless_stage_3_is_told() -> None:
    split = Split(2, 4, None)
    told = warning(jobs(10**8)(split), {"stage": 3}, H100)
    assert told is not None
    assert "ZeRO stage 1 fits, too" in told
    assert warning(jobs(10**8)(split), {"stage": 2}, H100) is None
    assert warning(jobs(3 * 10**9)(split), {"stage": 3}, H100) is None


def test_devices_by_name() -> None:
    assert find_device("cpu", 2).memory < find_device("cpu", 1).memory
    assert isinstance(find_device("h200"), Device)
    with pytest.raises(RecipeError, match="--device h10: did you mean 'h100'"):
        find_device("h10")
