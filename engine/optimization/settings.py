"""What all optimizers are told: the rate, the decay, and how both differ between parameters."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from configs.schema import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from engine.optimization.sharded import ShardedOptimizer
    from engine.protocols import UpdateRule, WeightAverage, WeightPenalty

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OptimizerSettings(Config):
    """Biases and norms are not decayed."""

    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0)
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="each layer's rate is that of the layer above it times this; heads learn at lr",
    )
    rates: dict[str, Factor] = Field(
        default_factory=dict,
        description="beginning of parameter names -> factor of their rate, 0 for none; the longest "
        "one counts",
    )

    def groups(self, learner: "nn.Module") -> list[dict[str, Any]]:
        """The learner's trainable parameters by decay and rate."""
        from engine.optimization.parameter_groups import parameter_groups

        return parameter_groups(learner, self.weight_decay, self.layer_decay, self.rates)

    def optimizer(
        self,
        groups: list[dict[str, Any]],
        rules: "dict[str, UpdateRule]",
        penalties: "Sequence[WeightPenalty]",
        average: "WeightAverage | None",
    ) -> "ShardedOptimizer":
        """An optimizer with these groups."""
        from engine.optimization.sharded import ShardedOptimizer

        return ShardedOptimizer(groups, self.lr, rules, penalties, average=average)
