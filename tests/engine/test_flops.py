"""FLOPs from a shape, held against those counted from the model."""

from pathlib import Path
from typing import Any

import pytest

from engine.adaptation import LowRank
from engine.flops import Updates, recomputed_flops, training_flops
from engine.hooks.throughput import training_cost
from engine.models import read_shape
from engine.parameter_shapes import ModelShape, model_shape
from tests.engine import tiny

LENGTH = 16
RANK = 2


def shape_of(name: str) -> ModelShape:
    architecture: Any = "causal_lm" if name in tiny.DECODERS else "masked_lm"
    return model_shape(read_shape(name), architecture, tiny.VOCABULARY)


@pytest.mark.parametrize("name", tiny.SHAPES)
@pytest.mark.parametrize("updates", [None, Updates(RANK)])
def test_a_shape_costs_what_its_model_does(
    name: str, updates: Updates | None, tmp_path: Path
) -> None:
    adaptation = None if updates is None else LowRank(rank=RANK).build(0)
    backbone: Any = tiny.learner(tmp_path, name, adaptation).backbone
    architecture: Any = "causal_lm" if name in tiny.DECODERS else "masked_lm"
    assert training_flops(shape_of(name), LENGTH, updates) == training_cost(
        backbone, architecture, LENGTH
    )


def test_what_is_recomputed_is_a_third_of_the_layers() -> None:
    shape = shape_of("bert_tiny")
    whole = training_flops(shape, LENGTH).token
    assert recomputed_flops(shape, LENGTH, 1) == whole / 3
    assert recomputed_flops(shape, LENGTH, 2) == whole / 6
