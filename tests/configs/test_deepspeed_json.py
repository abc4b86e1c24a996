"""A DeepSpeed JSON's facts: presets are sound, and what is no number or no truth value is told."""

from typing import Any

import pytest

from configs.deepspeed_json import (
    PRESETS,
    batch_plan,
    gradient_clipping,
    precision,
    read_deepspeed,
    zero_stage,
)
from configs.errors import RecipeError


@pytest.mark.parametrize("path", sorted(PRESETS.glob("[!a]*.json")), ids=lambda path: path.stem)
def test_every_preset_says_what_its_name_says(path) -> None:
    values = read_deepspeed(path.stem)
    kind, stage = precision(values), zero_stage(values)
    assert path.stem.startswith((f"zero{stage}_{kind}", "quickstart"))
    assert gradient_clipping(values) == 1.0
    assert batch_plan(values, 2).global_batch == values["train_batch_size"]


def test_a_batch_is_split() -> None:
    plan = batch_plan({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4}, 3)
    assert (plan.micro_batch, plan.accumulation) == (4, 2)
    with pytest.raises(RecipeError, match="cannot be split over 5 ranks"):
        batch_plan({"train_batch_size": 24}, 5)
    with pytest.raises(RecipeError, match="gradient_accumulation_steps is 3"):
        batch_plan({"train_batch_size": 24, "gradient_accumulation_steps": 3}, 1)


@pytest.mark.parametrize("given", ["auto", "32", 32.0, True, None, 0, -8, [32]])
@pytest.mark.parametrize(
    "key", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"]
)
def test_a_batch_that_is_no_whole_number_is_told(key: str, given: object) -> None:
    with pytest.raises(RecipeError, match=f"{key}: expected a whole number, 1 or more; given: "):
        batch_plan({"train_batch_size": 32} | {key: given}, 1)


@pytest.mark.parametrize("given", ["auto", "1", True, None, -1, 4, 1.0])
def test_a_stage_that_does_not_exist_is_told(given: object) -> None:
    with pytest.raises(RecipeError, match=r"zero_optimization\.stage: expected "):
        zero_stage({"zero_optimization": {"stage": given}})


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("given", ["auto", "true", 1, None])
def test_enabled_is_true_or_false(kind: str, given: object) -> None:
    with pytest.raises(RecipeError, match=rf"{kind}\.enabled: expected true or false; given: "):
        precision({kind: {"enabled": given}})


@pytest.mark.parametrize(
    ("read", "values"),
    [
        (precision, {"bf16": True}),
        (zero_stage, {"zero_optimization": 2}),
        (gradient_clipping, {"gradient_clipping": "auto"}),
        (gradient_clipping, {"gradient_clipping": float("nan")}),
    ],
)
def test_other_values_of_the_wrong_kind_are_told(read: Any, values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(values))}: expected "):
        read(values)
