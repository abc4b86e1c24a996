"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter, 2019)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engine.optimization.settings import OptimizerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocols import Part, UpdateRule


class AdamW(OptimizerSettings):
    """Settings of AdamW; two states a weight."""

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def rules(self) -> "dict[str, UpdateRule]":
        """The only one."""
        return {"adamw": AdamWRule(self.beta1, self.beta2, self.eps)}


class AdamWRule:
    """An UpdateRule: torch's fused kernel."""

    keys = ("exp_avg", "exp_avg_sq")

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self._beta1 = beta1
        self._beta2 = beta2
        self._eps = eps

    def update(self, parts: "Sequence[Part]", lr: float, weight_decay: float) -> None:
        """One step of each part."""
        from torch.optim.adamw import adamw

        adamw(
            [part.weight for part in parts],
            [part.gradient for part in parts],
            [part.states["exp_avg"] for part in parts],
            [part.states["exp_avg_sq"] for part in parts],
            [],
            [part.step for part in parts],
            fused=True,
            amsgrad=False,
            beta1=self._beta1,
            beta2=self._beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=self._eps,
            maximize=False,
        )
