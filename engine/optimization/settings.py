"""What all optimizers are told: the rate, the decay, and how both differ between parameters."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from configs.schema import Config
from engine.optimization.parameter_groups import (
    Member,
    MemberGroup,
    as_parameters,
    members_of,
    require_all_used,
    split,
)
from engine.planner import Group, Working

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from engine.optimization.sharded import ShardedOptimizer
    from engine.protocols import UpdateRule, WeightAverage, WeightPenalty

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OptimizerSettings(Config, ABC):
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

    @property
    def are_placed(self) -> bool:
        """Whether groups depend on which layer a parameter is in."""
        return self.layer_decay is not None

    @abstractmethod
    def rules(self) -> "dict[str, UpdateRule]":
        """How weights are updated, by name; torch is not needed to make them."""

    def rule_of(self, member: Member, top: int) -> str:
        """Which rule updates a parameter: the only one. ``top``: the greatest depth."""
        del member, top
        return next(iter(self.rules()))

    def split(self, members: "Sequence[Member]", top: int) -> list[MemberGroup]:
        """Trained parameters by decay, rate and rule; ``top``: the greatest depth."""
        return [
            replace(group, members=own, rule=rule)
            for group in split(members, self.weight_decay, self.layer_decay, self.rates, top)
            for rule in self.rules()
            if (own := tuple(m for m in group.members if self.rule_of(m, top) == rule))
        ]

    def groups(self, learner: "nn.Module") -> list[dict[str, Any]]:
        """The learner's trainable parameters, as torch's optimizers take them.

        Raises:
            RecipeError: nothing is trainable, a prefix of ``rates`` fits nothing that is, or the
                model's layers cannot be told.
        """
        members, top = members_of(learner, are_placed=self.are_placed)
        require_all_used(members, self.rates)
        return as_parameters(learner, self.split(members, top))

    def working(self, rule: str) -> Working:
        """What an update by a rule takes for a moment."""
        del rule
        return Working()

    def planned(self, group: MemberGroup, sizes: "Mapping[str, int]") -> Group:
        """A group as the planner counts it; ``sizes``: name of a member -> values."""
        tensors = tuple(sizes[member.name] for member in group.members)
        return Group(tensors, len(self.rules()[group.rule].keys), self.working(group.rule))

    def build(
        self,
        learner: "nn.Module",
        penalties: "Sequence[WeightPenalty]" = (),
        average: "WeightAverage | None" = None,
    ) -> "ShardedOptimizer":
        """The optimizer over the learner's trainable parameters; RecipeError as ``groups``."""
        from engine.optimization.sharded import ShardedOptimizer

        groups = self.groups(learner)
        return ShardedOptimizer(groups, self.lr, self.rules(), penalties, average=average)
