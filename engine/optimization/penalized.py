"""Torch's fused AdamW, with weight penalties applied to whatever partition it is given."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from engine.protocols import WeightPenalty

MOMENTS = ("exp_avg", "exp_avg_sq")


class PenalizedAdamW(torch.optim.AdamW):
    """Works on any fp32 partition, flat or not: every operation is elementwise.

    State of a parameter: ``step``, the moments, and each penalty's tensors under its own keys.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        penalties: Sequence[WeightPenalty] = (),
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._penalties = tuple(penalties)
        self.permit: Callable[[], bool] | None = None
        """Asked before anything changes, in every call of ``step``; None: always."""

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of all state tensors that have the parameter's shape."""
        return MOMENTS + tuple(key for penalty in self._penalties for key in penalty.keys)

    def create_state(self, parameter: torch.Tensor, steps: int) -> dict[str, Any]:
        """The full state of a parameter that has made ``steps`` steps, its tensors to be filled."""
        state: dict[str, Any] = self.state[parameter]
        state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)
        for key in self.state_keys:
            if key not in state:
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's has overloads
        """Add the penalties' gradients, then AdamW; nothing at all if ``permit`` refuses."""
        if self.permit is not None and not self.permit():
            return None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._pull(parameter)
        loss: float | None = super().step(closure)
        return loss

    def _pull(self, parameter: torch.Tensor) -> None:
        if not self._penalties:
            return
        if not self.state[parameter]:
            # All of it, moments too: torch makes them for an empty state alone.
            self.create_state(parameter, 0)
            for penalty in self._penalties:
                penalty.start(parameter, self.state[parameter])
        for penalty in self._penalties:
            penalty.add_gradient(parameter, self.state[parameter])
