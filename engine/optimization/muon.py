"""Muon: momentum made orthogonal, matrix by matrix (Jordan et al., 2024; Liu et al., 2025).

DeepSpeed's own Muon takes the iteration in half precision inside its gradient buffers, where
neither penalties nor a checkpoint of ours would reach it. This one sees the same matrices at every
ZeRO stage: a matrix that is cut over ranks is put together for the iteration.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from configs.errors import RecipeError
from engine.optimization.adamw import AdamWRule
from engine.optimization.parameter_groups import Member, MemberGroup
from engine.optimization.settings import OptimizerSettings
from engine.planner import Working

if TYPE_CHECKING:
    from torch import Tensor

    from engine.protocols import Part, UpdateRule

# Of the quintic iteration: Jordan et al., https://kellerjordan.github.io/posts/muon/
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(OptimizerSettings):
    """Matrices of the transformer's layers by Muon, all else by AdamW.

    Updates are scaled to AdamW's usual size (0.2 times the root of the longer side: Liu et al.,
    2025, arXiv:2502.16982), so that one rate serves both. One state a weight of those matrices, two
    of the rest.
    """

    name: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1)
    iterations: PositiveInt = Field(5, description="of Newton and Schulz")
    iterate_in: Literal["bf16", "fp32"] = Field("bf16", description="precision of the iteration")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's, of the rest")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's, of the rest")
    eps: float = Field(1e-8, gt=0, description="AdamW's, of the rest")

    @property
    def are_placed(self) -> bool:
        """Always: the layers' matrices are another group."""
        return True

    def rules(self) -> "dict[str, UpdateRule]":
        """That of the layers' matrices first."""
        return {
            "muon": MuonRule(self.momentum, self.iterations, self.iterate_in),
            "adamw": AdamWRule(self.beta1, self.beta2, self.eps),
        }

    def rule_of(self, member: Member, top: int) -> str:
        """Muon turns matrices that lie in a layer."""
        is_inner = member.depth is not None and 1 <= member.depth < top
        return "muon" if is_inner and member.dimensions >= 2 else "adamw"

    def split(self, members: Sequence[Member], top: int) -> list[MemberGroup]:
        """As any; RecipeError if no matrix of the model's layers is trained."""
        found = super().split(members, top)
        if not any(group.rule == "muon" for group in found):
            msg = "optimizer muon: no matrix of the model's layers is trained; use adamw"
            raise RecipeError(msg)
        return found

    def working(self, rule: str) -> Working:
        """Directions before and after the turn; in it five copies of a square matrix."""
        if rule != "muon":
            return Working()
        return Working(copies=2, turning=5 * (2 if self.iterate_in == "bf16" else 4))


class MuonRule:
    """A TurningRule; several in one tensor (experts) are turned each by itself."""

    keys = ("momentum",)

    def __init__(self, momentum: float, iterations: int, iterate_in: str) -> None:
        self._momentum = momentum
        self._iterations = iterations
        self._iterate_in = iterate_in

    def accumulate(self, gradient: "Tensor", state: Mapping[str, Any]) -> "Tensor":
        """The direction before it is turned (Nesterov's), elementwise."""
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient.to(momentum.dtype), 1 - self._momentum)
        return gradient.to(momentum.dtype).lerp(momentum, self._momentum)

    def turn(self, matrix: "Tensor") -> "Tensor":
        """[..., m, n] -> its nearest orthogonal matrix, about, in AdamW's size."""
        import torch

        kind = torch.bfloat16 if self._iterate_in == "bf16" else torch.float32
        rows, columns = matrix.shape[-2:]
        a, b, c = _COEFFICIENTS
        x = matrix.to(kind)
        if rows > columns:
            x = x.mT
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        for _ in range(self._iterations):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        if rows > columns:
            x = x.mT
        scale: float = 0.2 * max(rows, columns) ** 0.5
        turned: Tensor = x.to(matrix.dtype) * scale
        return turned

    def update(self, parts: "Sequence[Part]", lr: float, weight_decay: float) -> None:
        """Decay, and a step along directions that have been turned."""
        for part in parts:
            part.weight.mul_(1 - lr * weight_decay).add_(part.gradient, alpha=-lr)
            part.step.add_(1)
