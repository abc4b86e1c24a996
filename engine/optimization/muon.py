"""Muon: momentum made orthogonal, matrix by matrix (Jordan et al., 2024; Liu et al., 2025).

DeepSpeed's own Muon takes the iteration in half precision inside its gradient buffers, where
neither penalties nor a checkpoint of ours would reach it. This one sees the same matrices at every
ZeRO stage: a matrix that is cut over ranks is put together for the iteration.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from engine.optimization.adamw import AdamWRule
from engine.optimization.settings import OptimizerSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.optimization.sharded import ShardedOptimizer
    from engine.protocols import Part, UpdateRule, WeightAverage, WeightPenalty

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

    def build(
        self,
        learner: "nn.Module",
        penalties: "Sequence[WeightPenalty]" = (),
        average: "WeightAverage | None" = None,
    ) -> "ShardedOptimizer":
        """The optimizer over the learner's trainable parameters."""
        inner = _inner_matrices(learner)
        groups = []
        for group in self.groups(learner):
            for rule, members in (
                ("muon", [p for p in group["params"] if p in inner]),
                ("adamw", [p for p in group["params"] if p not in inner]),
            ):
                if members:
                    groups.append(group | {"params": members, "rule": rule})
        rules: dict[str, UpdateRule] = {
            "muon": MuonRule(self.momentum, self.iterations, self.iterate_in),
            "adamw": AdamWRule(self.beta1, self.beta2, self.eps),
        }
        return self.optimizer(groups, rules, penalties, average)


def _inner_matrices(learner: "nn.Module") -> "set[nn.Parameter]":
    """The trained matrices in the layers; RecipeError if the model has none that can be told."""
    from configs.errors import RecipeError
    from engine.layers import layer_of

    backbone: Any = learner.backbone
    depths = layer_of(backbone)
    last = backbone.config.num_hidden_layers
    found = {
        parameter
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and parameter.ndim >= 2 and 1 <= depths[name] <= last
    }
    if not found:
        msg = "optimizer muon: no matrix of the model's layers is trained; use adamw"
        raise RecipeError(msg)
    return found


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
