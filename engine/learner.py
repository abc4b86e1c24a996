"""Backbone, heads and objective as the one module that a backend wraps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.protocols import Objective


class Learner(nn.Module):
    """Turns a batch into its summed loss. Parameter names: ``backbone.*`` and ``heads.*``."""

    def __init__(self, backbone: nn.Module, objective: "Objective") -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = objective.modules(backbone)
        self.objective = objective

    def forward(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of a ``Loss``: bare tensors, which DeepSpeed can hook."""
        loss = self.objective.loss(self, tensors)
        return loss.total, loss.by_source, loss.measures
