"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter, 2019)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from configs.schema import Config

if TYPE_CHECKING:
    from torch import nn

    from engine.optimization.penalized import PenalizedAdamW
    from engine.protocols import WeightAverage, WeightPenalty


class AdamW(Config):
    """Settings of AdamW; biases and norms are not decayed."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def build(
        self,
        learner: "nn.Module",
        penalties: Sequence["WeightPenalty"] = (),
        average: "WeightAverage | None" = None,
    ) -> "PenalizedAdamW":
        """The optimizer over the learner's trainable parameters."""
        from engine.optimization.parameter_groups import parameter_groups
        from engine.optimization.penalized import PenalizedAdamW

        groups = parameter_groups(learner, self.weight_decay)
        betas = (self.beta1, self.beta2)
        return PenalizedAdamW(
            groups, self.lr, betas, self.eps, penalties=penalties, average=average
        )
