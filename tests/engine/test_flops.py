"""FLOPs from a shape, held against those counted from the model."""

from pathlib import Path
from typing import Any

import pytest

from engine.adaptation import Adapter, FrozenLayers, LowRank
from engine.flops import forward_flops, recomputed_flops, training_flops
from engine.hooks.throughput import training_cost
from engine.models import read_shape
from engine.parameter_shapes import ModelShape, model_shape
from tests.engine import tiny

LENGTH = 16


def shape_of(name: str) -> ModelShape:
    architecture: Any = "causal_lm" if name in tiny.DECODERS else "masked_lm"
    return model_shape(read_shape(name), architecture, tiny.VOCABULARY)


@pytest.mark.parametrize("name", tiny.SHAPES)
@pytest.mark.parametrize("adaptation", [None, LowRank(rank=2), Adapter(size=8)])
def test_a_shape_costs_what_its_model_does(
    name: str, adaptation: LowRank | Adapter | None, tmp_path: Path
) -> None:
    built = adaptation.build(0) if adaptation else None
    backbone: Any = tiny.learner(tmp_path, name, built).backbone
    architecture: Any = "causal_lm" if name in tiny.DECODERS else "masked_lm"
    shape = shape_of(name)
    part = adaptation.counted(shape) if adaptation else None
    assert training_flops(shape, LENGTH, part) == training_cost(backbone, architecture, LENGTH)


def test_frozen_lower_layers_cost_a_third() -> None:
    shape = shape_of("bert_tiny")
    whole, frozen = (
        training_flops(shape, LENGTH, part)
        for part in (None, FrozenLayers(layers=shape.sizes.layers).counted(shape))
    )
    attention = 12 * shape.sizes.layers * shape.sizes.hidden * LENGTH
    assert frozen.token - attention == (whole.token - attention) / 3


def test_what_is_recomputed_is_a_third_of_the_layers() -> None:
    shape = shape_of("bert_tiny")
    whole = training_flops(shape, LENGTH).token
    assert recomputed_flops(shape, LENGTH, 1) == whole / 3
    assert recomputed_flops(shape, LENGTH, 2) == whole / 6


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_a_teachers_pass_is_a_third(name: str) -> None:
    whole, forward = training_flops(shape_of(name), LENGTH), forward_flops(shape_of(name), LENGTH)
    assert (3 * forward.token, 3 * forward.target) == (whole.token, whole.target)
