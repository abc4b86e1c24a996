"""Lion: steps of one size, by the sign of a momentum (Chen et al., 2023, arXiv:2302.06675)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engine.optimization.settings import OptimizerSettings
from engine.planner import Working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocols import Part, UpdateRule


class Lion(OptimizerSettings):
    """Settings of Lion; one state a weight.

    Its steps are larger than AdamW's: the paper takes a third to a tenth of AdamW's rate, and a
    decay as many times larger.
    """

    name: Literal["lion"] = "lion"
    beta1: float = Field(0.9, ge=0, lt=1, description="share of the momentum in a step's direction")
    beta2: float = Field(0.99, ge=0, lt=1, description="share of the momentum that a step keeps")

    def rules(self) -> "dict[str, UpdateRule]":
        """The only one."""
        return {"lion": LionRule(self.beta1, self.beta2)}

    def working(self, rule: str) -> Working:
        """The directions."""
        del rule
        return Working(copies=1)


class LionRule:
    """An UpdateRule, elementwise."""

    keys = ("exp_avg",)

    def __init__(self, beta1: float, beta2: float) -> None:
        self._beta1 = beta1
        self._beta2 = beta2

    def update(self, parts: "Sequence[Part]", lr: float, weight_decay: float) -> None:
        """One step of each part."""
        import torch

        weights = [part.weight for part in parts]
        gradients = [part.gradient.to(part.weight.dtype) for part in parts]
        momenta = [part.states["exp_avg"] for part in parts]
        directions = torch._foreach_lerp(momenta, gradients, 1 - self._beta1)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, directions, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - self._beta2)
        torch._foreach_add_([part.step for part in parts], 1)
