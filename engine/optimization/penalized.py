"""Torch's fused AdamW, with penalties and an average of the weights, on whatever partition."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from engine.protocols import WeightAverage, WeightPenalty

MOMENTS = ("exp_avg", "exp_avg_sq")


class PenalizedAdamW(torch.optim.AdamW):
    """Works on any fp32 partition, flat or not: every operation is elementwise.

    State of a parameter: ``step``, the moments, and each penalty's and the average's tensors under
    their own keys.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        penalties: Sequence[WeightPenalty] = (),
        *,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._penalties = tuple(penalties)
        self._average = average
        self.permit: Callable[[], bool] | None = None
        """Asked before anything changes, in every call of ``step``; None: always."""

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of all state tensors that have the parameter's shape."""
        return MOMENTS + self._pull_keys + self._average_keys

    @property
    def _pull_keys(self) -> tuple[str, ...]:
        return tuple(key for penalty in self._penalties for key in penalty.keys)

    @property
    def _average_keys(self) -> tuple[str, ...]:
        return self._average.keys if self._average else ()

    def create_state(self, parameter: torch.Tensor, steps: int) -> dict[str, Any]:
        """The full state of a parameter that has made ``steps`` steps, its tensors to be filled."""
        state: dict[str, Any] = self.state[parameter]
        state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)
        for key in self.state_keys:
            if key not in state:
                # An average moves by less than a low-precision weight could tell.
                kind = torch.float32 if key in self._average_keys else parameter.dtype
                state[key] = torch.zeros_like(
                    parameter, dtype=kind, memory_format=torch.preserve_format
                )
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's has overloads
        """Penalties' gradients, AdamW, average; nothing at all if ``permit`` refuses."""
        if self.permit is not None and not self.permit():
            return None
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                # A flat partition cannot tell that from a gradient of zero, so nobody does.
                parameter.grad = torch.zeros_like(parameter)
            self._start(parameter)
            for penalty in self._penalties:
                penalty.add_gradient(parameter, self.state[parameter])
        loss: float | None = super().step(closure)
        if self._average:
            for parameter in parameters:
                self._average.update(parameter, self.state[parameter])
        return loss

    def _start(self, parameter: torch.Tensor) -> None:
        """All state, before the parameter's first step: torch makes none where there is some."""
        if self.state[parameter]:
            return
        self.create_state(parameter, 0)
        for penalty in self._penalties:
            penalty.start(parameter, self.state[parameter])
        if self._average:
            self._average.start(parameter, self.state[parameter])
