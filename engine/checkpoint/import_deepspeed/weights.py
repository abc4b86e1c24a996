"""Checks on the imported values, and the form in which ``save`` takes them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed.contents import MOMENTS, WEIGHT, Parameter
from engine.checkpoint.import_deepspeed.placing import Placed
from engine.protocols import Fragment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import WeightAverage


def fill(learner: "nn.Module", weights: Mapping[str, "Parameter | Tensor"]) -> None:
    """Put weights into a learner's parameters, in fp32, one after another."""
    import torch

    parameters = dict(learner.named_parameters())
    with torch.no_grad():
        for name, given in weights.items():
            value = given.whole(WEIGHT) if isinstance(given, Parameter) else given
            parameters[name].copy_(value.reshape(parameters[name].shape))


def require_sound(placed: Placed, second_is: str, where: object) -> None:
    """CheckpointError unless both readings of the weights agree and the moments can be moments.

    Low-precision weights must be the fp32 ones rounded, value for value: so they are made.
    """
    for name, parameter in placed.trained.items():
        weight = parameter.whole(WEIGHT)
        if not bool(weight.isfinite().all()):
            msg = f"{where}: {name}: its weights are not finite; import an earlier checkpoint"
            raise CheckpointError(msg)
        if name in placed.second:
            _require_equal(name, weight, placed.second[name], second_is, where)
        for key in (key for key in MOMENTS if key in parameter.states):
            moment = parameter.whole(key)
            least = float(moment.min()) if key == MOMENTS[1] and moment.numel() else 0.0
            if least < 0 or not bool(moment.isfinite().all()):
                msg = f"{where}: {name}: '{key}' holds values that no moment of Adam can have"
                raise CheckpointError(msg)


def _require_equal(
    name: str, weight: "Tensor", second: "Parameter | Tensor", second_is: str, where: object
) -> None:
    import torch

    other = second.whole(WEIGHT) if isinstance(second, Parameter) else second
    rounded = weight.to(other.dtype)
    if torch.equal(rounded, other.reshape(rounded.shape)):
        return
    apart = (rounded.float() - other.reshape(rounded.shape).float()).abs()
    number = int((apart > 0).sum())
    msg = (
        f"{where}: {name}: {number} of {apart.numel()} values read from the optimizer's shards are "
        f"not {second_is} (largest difference {float(apart.max()):.3g}): the files are damaged, or "
        "not of one save"
    )
    raise CheckpointError(msg)


class ImportedState:
    """Imported parameters as ``save`` takes them: pieces as they lie in the files, not copied."""

    def __init__(
        self,
        trained: Mapping[str, Parameter],
        extra: Mapping[str, Any],
        average: "WeightAverage | None" = None,
    ) -> None:
        """By the learner's names.

        Args:
            trained: the parameters.
            extra: what a backend's ``extra_state`` would give.
            average: of the weights, which begins at the imported ones, where there are moments.
        """
        self._trained = trained
        self._extra = dict(extra)
        self._average = average

    def fragments(self) -> Iterator[Fragment]:
        """Every piece of every state."""
        for name, parameter in self._trained.items():
            for key, pieces in parameter.states.items():
                for piece in pieces:
                    yield Fragment(name, key, parameter.shape, piece.start, piece.values)
            if self._average and set(MOMENTS) <= set(parameter.states):
                yield from self._begun(self._average, name, parameter)

    def _begun(
        self, average: "WeightAverage", name: str, parameter: Parameter
    ) -> Iterator[Fragment]:
        for piece in parameter.states[WEIGHT]:
            state = {key: piece.values.float().clone() for key in average.keys}
            average.start(piece.values, state)
            for key, tensor in state.items():
                yield Fragment(name, key, parameter.shape, piece.start, tensor)

    def extra_state(self) -> dict[str, Any]:
        """Skipped steps and the loss scale."""
        return dict(self._extra)
