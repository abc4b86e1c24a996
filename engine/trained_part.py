"""Which weights train under an adaptation, and which it adds, told from a shape alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from engine.parameter_shapes import ModelShape, Weight

_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|h)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """What an adaptation makes of a model, as far as arithmetic goes.

    Attributes:
        trained: names of the model's own weights that train.
        added: further weights, all of which train; a token is multiplied with each matrix.
        passed: names of frozen weights that no gradient passes.
    """

    trained: frozenset[str]
    added: tuple[Weight, ...] = ()
    passed: frozenset[str] = frozenset()


def chosen(shape: ModelShape, trains: Callable[[Weight], bool]) -> TrainedPart:
    """Some of the model's own weights, and nothing beside them."""
    return TrainedPart(frozenset(weight.name for weight in shape.weights if trains(weight)))


def depth_of(weight: Weight, shape: ModelShape) -> int:
    """As ``engine.layers.layer_of`` tells it of a real model's parameters."""
    if weight.head:
        return shape.sizes.layers + 1
    if found := _NUMBERED.search(weight.name):
        return 1 + int(found[1])
    is_first = weight.is_table or "embeddings." in weight.name
    return 0 if is_first else shape.sizes.layers + 1
