"""The one optimizer: an update rule, penalties and an average of the weights, on any partition."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.protocols import (
    Matrices,
    Part,
    Piece,
    TurningRule,
    UpdateRule,
    WeightAverage,
    WeightPenalty,
)
from engine.update_sizes import PIECE


class ShardedOptimizer(torch.optim.Optimizer):
    """Works on any partition, flat or not: what a rule needs beyond single values, it asks for.

    State of a parameter: ``step``, and the tensors of its group's rule, of each penalty and of the
    average, under their own keys.

    Attributes:
        permit: asked before anything changes, in every call of ``step``; None: always.
        pieces_of: which parameters a partition holds; set by the backend.
        matrices: gives rules whole matrices; set by the backend.
        is_measuring: whether the updates of the next calls of ``step`` are to be measured.
        squares: fp64 scalar, the sum of the squared changes since it was last set to None.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        rules: Mapping[str, UpdateRule],
        penalties: Sequence[WeightPenalty] = (),
        *,
        average: WeightAverage | None = None,
    ) -> None:
        """Set up.

        Args:
            groups: of parameters; ``rule`` of each names one of ``rules``, the first by default.
            lr: of all groups until they are given another one.
            rules: how weights are updated.
            penalties: add to the gradients first.
            average: sees the weights afterwards.
        """
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "rule": next(iter(rules))})
        self._rules = dict(rules)
        self._penalties = tuple(penalties)
        self._average = average
        self.permit: Callable[[], bool] | None = None
        self.pieces_of: Callable[[Tensor], Sequence[Piece]] = _unknown
        self.matrices: Matrices | None = None
        self.is_measuring = False
        self.squares: Tensor | None = None

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of all state tensors that have the parameter's shape, of whatever group."""
        rules = [key for rule in self._rules.values() for key in rule.keys]
        return tuple(dict.fromkeys(rules)) + self._pull_keys + self._average_keys

    @property
    def average_key(self) -> str | None:
        """Of the average itself; None without one."""
        return self._average_keys[0] if self._average else None

    @property
    def _pull_keys(self) -> tuple[str, ...]:
        return tuple(key for penalty in self._penalties for key in penalty.keys)

    @property
    def _average_keys(self) -> tuple[str, ...]:
        return self._average.keys if self._average else ()

    def create_state(self, parameter: Tensor, rule: str, steps: int) -> dict[str, Any]:
        """The full state of a parameter that has made ``steps`` steps, its tensors to be filled.

        ``rule``: that of its group.
        """
        state: dict[str, Any] = self.state[parameter]
        state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)
        own = self._rules[rule].keys
        for key in (*own, *self._pull_keys, *self._average_keys):
            if key not in state:
                # An average moves by less than a low-precision weight could tell.
                kind = torch.float32 if key in self._average_keys else parameter.dtype
                state[key] = torch.zeros_like(
                    parameter, dtype=kind, memory_format=torch.preserve_format
                )
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's has overloads
        """Penalties' gradients, the rules, average; nothing at all if ``permit`` refuses."""
        del closure
        if self.permit is not None and not self.permit():
            return None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    # A flat partition cannot tell that from a gradient of zero, so nobody does.
                    parameter.grad = torch.zeros_like(parameter)
                self._start(parameter, group["rule"])
                for penalty in self._penalties:
                    penalty.add_gradient(parameter, self.state[parameter])
            self._update(group)
            if self._average:
                for parameter in group["params"]:
                    self._average.update(parameter, self.state[parameter])
        return None

    def _start(self, parameter: Tensor, rule: str) -> None:
        """All state, before the parameter's first step."""
        if self.state[parameter]:
            return
        state = self.create_state(parameter, rule, 0)
        for penalty in self._penalties:
            penalty.start(parameter, state, lambda: self.pieces_of(parameter))
        if self._average:
            self._average.start(parameter, state)

    def _update(self, group: dict[str, Any]) -> None:
        rule = self._rules[group["rule"]]
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        parts: list[Part] = []
        for parameter in group["params"]:
            gradient: Tensor = parameter.grad
            if isinstance(rule, TurningRule):
                gradient = self._turned(rule, parameter, gradient)
            parts += _cut(parameter, gradient, self.state[parameter], rule.keys)
        if not self.is_measuring:
            if parts:
                rule.update(parts, lr, decay)
        else:
            for some in _together(parts):
                self._measured(some, lambda some=some: rule.update(some, lr, decay))  # type: ignore[misc]  # a default binds it

    def _turned(self, rule: TurningRule, parameter: Tensor, gradient: Tensor) -> Tensor:
        """What a rule makes of the gradient as whole matrices, in the partition's shape."""
        if self.matrices is None:
            msg = "the optimizer's rule needs whole matrices, and no backend gives them"
            raise RuntimeError(msg)
        direction = rule.accumulate(gradient, self.state[parameter])
        return self.matrices(parameter, direction, rule.turn)

    def _measured(self, parts: "Sequence[Part]", update: Callable[[], None]) -> None:
        before = [part.weight.clone() for part in parts]
        update()
        squares = torch.stack(
            [
                (part.weight - was).double().square().sum()
                for part, was in zip(parts, before, strict=True)
            ]
        ).sum()
        self.squares = (
            squares if self.squares is None else self.squares + squares.to(self.squares.device)
        )


def _cut(
    parameter: Tensor, gradient: Tensor, state: Mapping[str, Any], keys: Sequence[str]
) -> Iterator[Part]:
    """A parameter as parts of at most ``PIECE`` values."""
    step: Tensor = state["step"]
    if parameter.numel() <= PIECE:
        yield Part(parameter.detach(), gradient, {key: state[key] for key in keys}, step)
        return
    flat = {key: state[key].view(-1) for key in keys}
    weight, slope = parameter.detach().view(-1), gradient.reshape(-1)
    for start in range(0, parameter.numel(), PIECE):
        here = slice(start, start + PIECE)
        states = {key: values[here] for key, values in flat.items()}
        # Each part counts the step, and it is one step.
        yield Part(weight[here], slope[here], states, step.clone() if start else step)


def _together(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts in a row that have about ``PIECE`` values."""
    some: list[Part] = []
    for part in parts:
        some.append(part)
        if sum(each.weight.numel() for each in some) >= PIECE:
            yield some
            some = []
    if some:
        yield some


def _unknown(parameter: Tensor) -> Sequence[Piece]:
    del parameter
    msg = "the optimizer has no backend that tells what its partitions hold"
    raise RuntimeError(msg)
