"""FLOPs of training, from a model's shape alone; engine/hooks/throughput.py counts a real model's.

6 for each matrix weight that a token is multiplied with (4 if the weight is frozen), the head's
only for targets, experts' only of those used; attention 12*L*d*s for encoders, 6*L*d*s for
decoders.
"""

from dataclasses import dataclass

from engine.parameter_shapes import ModelShape, Weight
from engine.trained_part import TrainedPart

_FORWARD, _INPUT, _WEIGHT = 2, 2, 2
"""For each weight and token: the forward pass, the input's gradient, the weight's own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of training: ``token`` for every token of a row, ``target`` for each prediction."""

    token: float
    target: float


def training_flops(shape: ModelShape, length: int, part: TrainedPart | None = None) -> Cost:
    """Of a model on rows of ``length`` tokens; ``part`` None: all of it trains."""
    whole = _FORWARD + _INPUT + _WEIGHT
    added = () if part is None else part.added
    each = {weight.name: whole for weight in (*shape.weights, *added)}
    if part is not None:
        each |= {weight.name: _passes(weight, part) for weight in shape.weights}
    token = target = 0.0
    for weight in (*shape.weights, *added):
        cost = each[weight.name] * _applied(shape, weight)
        token, target = (token, target + cost) if weight.head else (token + cost, target)
    if shape.output is not None:
        output = next(weight for weight in shape.weights if weight.name == shape.output)
        # A table that is looked up below, and multiplied with on top, where a gradient passes.
        target += 0 if output.head else max(each[output.name], _FORWARD + _INPUT) * output.numel
    return Cost(token + 3 * _attention(shape, length), target)


def forward_flops(shape: ModelShape, length: int) -> Cost:
    """Of a forward pass alone, as a frozen teacher makes it."""
    applied = {weight.name: _applied(shape, weight) for weight in shape.weights}
    heads = {weight.name for weight in shape.weights if weight.head}
    token = sum(values for name, values in applied.items() if name not in heads)
    target = sum(applied[name] for name in heads)
    if shape.output is not None and shape.output not in heads:
        target += next(weight.numel for weight in shape.weights if weight.name == shape.output)
    return Cost(_FORWARD * token + _attention(shape, length), _FORWARD * target)


def _passes(weight: Weight, part: TrainedPart) -> int:
    """FLOPs a token for each value of one of the model's own matrices."""
    if weight.name in part.trained:
        return _FORWARD + _INPUT + _WEIGHT
    return _FORWARD if weight.name in part.passed else _FORWARD + _INPUT


def recomputed_flops(shape: ModelShape, length: int, every: int) -> float:
    """A token's, of the forward pass that is done again for one of ``every`` layers."""
    layers = shape.sizes.layers
    matrices = sum(_applied(shape, weight) for weight in shape.weights if not weight.head)
    forward = _FORWARD * matrices + _attention(shape, length)
    return forward * -(-layers // every) / layers


def _applied(shape: ModelShape, weight: Weight) -> float:
    """Values that a token is multiplied with; looked-up tables and vectors are not."""
    if weight.is_table or len(weight.shape) == 1:
        return 0.0
    if len(weight.shape) == 3:
        return weight.numel * shape.sizes.experts / weight.shape[0]
    return float(weight.numel)


def _attention(shape: ModelShape, length: int) -> float:
    """A token's scores and sums in a forward pass; a decoder's look back only."""
    sizes = shape.sizes
    return (2 if shape.is_decoder else 4) * sizes.layers * sizes.hidden * length
