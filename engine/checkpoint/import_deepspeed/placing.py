"""A foreign checkpoint's parameters under the names of a learner; every difference is named."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed.contents import Contents, Parameter

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 5
_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Placed:
    """By the learner's names, in its order.

    Attributes:
        second: ``Contents.second``, or empty.
    """

    trained: Mapping[str, Parameter]
    second: Mapping[str, "Tensor | Parameter"]


class Names:
    """Which parameter of a learner a foreign name stands for."""

    def __init__(self, learner: "nn.Module") -> None:
        """Of all its parameters, tied ones under each of their names."""
        self._learner = learner
        first = {parameter: name for name, parameter in learner.named_parameters()}
        every = learner.named_parameters(remove_duplicate=False)
        self._own = {name: first[parameter] for name, parameter in every}

    def own(self, name: str) -> str | None:
        """The learner's name; None if it has no such parameter."""
        return self._own.get(f"{_BACKBONE}{name}", self._own.get(name))

    def trains(self, name: str) -> bool:
        """Whether the learner has such a parameter, and it trains."""
        own = self.own(name)
        return own is not None and self._learner.get_parameter(own).requires_grad


def place(contents: Contents, learner: "nn.Module", where: object) -> Placed:
    """The checkpoint's trained parameters as the learner's.

    Raises:
        CheckpointError: one is missing, extra, of another shape, tied otherwise or frozen in one
            of the two; or a frozen one has other values.
    """
    names = Names(learner)
    owners: dict[str, list[str]] = {}
    for name in contents.trained:
        owners.setdefault(names.own(name) or "", []).append(name)
    strangers = [f"{name}: not in the stage's model" for name in owners.pop("", [])]
    twice = [
        f"{' and '.join(held)}: two tensors there, one tied one here"
        for held in owners.values()
        if len(held) > 1
    ]
    parameters = dict(learner.named_parameters())
    problems = [*strangers, *twice, *_misfits(contents, owners, parameters)]
    if not problems:
        problems = [*_other_ties(contents, names), *_other_frozen(contents, names, parameters)]
    if problems:
        raise CheckpointError(_told(where, problems))
    order = [name for name, p in parameters.items() if p.requires_grad]
    return Placed(
        {name: contents.trained[owners[name][0]] for name in order},
        {name: contents.second[owners[name][0]] for name in order} if contents.second else {},
    )


def _misfits(
    contents: Contents, owners: Mapping[str, list[str]], parameters: Mapping[str, "nn.Parameter"]
) -> Iterable[str]:
    frozen = set(contents.frozen)
    for name, parameter in parameters.items():
        if name in owners:
            theirs = owners[name][0]
            shape = contents.trained[theirs].shape
            if shape != tuple(parameter.shape):
                yield f"{theirs}: its shape is {shape} there, {tuple(parameter.shape)} here"
            elif not parameter.requires_grad:
                yield f"{theirs}: trained there, frozen here"
        elif parameter.requires_grad:
            theirs = name.removeprefix(_BACKBONE)
            tied = contents.aliases.get(theirs)
            why = "frozen there, trains here" if theirs in frozen else "missing there"
            yield f"{theirs}: {f'tied to {tied} there, not here' if tied else why}"


def _other_ties(contents: Contents, names: Names) -> Iterable[str]:
    for name, held in contents.aliases.items():
        own = names.own(name)
        if own is not None and names.own(held) is not None and own != names.own(held):
            yield f"{name}: tied to {held} there, not here"


def _other_frozen(
    contents: Contents, names: Names, parameters: Mapping[str, "nn.Parameter"]
) -> Iterable[str]:
    """Frozen weights are in no checkpoint of ours: the recipe's model must have them already."""
    import torch

    for name, theirs in contents.frozen.items():
        own = names.own(name)
        if own is None:
            yield f"{name}: not in the stage's model"
            continue
        ours = parameters[own].detach().to(theirs.dtype)
        if ours.shape != theirs.shape or not torch.equal(ours, theirs):
            yield f"{name}: frozen, and other values than those of the stage's model"


def _told(where: object, problems: list[str]) -> str:
    listed = "\n  ".join(problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"{where}: not the model of this stage:\n  {listed}{more}\n"
        "name the same architecture, vocabulary and adaptation in the recipe as it was trained with"
    )
