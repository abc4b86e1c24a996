"""Causal language modelling (GPT, Llama, Mixtral): each token from those before it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.rows import Rows
from engine.isolation import isolated_inputs
from engine.objectives.routing import RouterBalance, imbalance, require_routers, routed
from engine.rows import batch_of, stack, summed, targets_of_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Architecture, Batch, LearnerModule, Loss


class CausalLanguageModelling(Config):
    """Predict the next token; never across the border of two documents."""

    name: Literal["clm"] = "clm"
    balance: RouterBalance | None = Field(
        None, description="of a mixture of experts: use them equally, too"
    )

    @property
    def needs_word_starts(self) -> bool:
        """False."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """False."""
        return False

    def build(self, special: Mapping[str, int], vocabulary_size: int) -> "CausalObjective":
        """The objective; it needs nothing of the vocabulary."""
        del special, vocabulary_size
        return CausalObjective(self.balance)


class CausalObjective:
    """Targets are the tokens whose predecessor lies in the same document.

    With ``balance`` a row's imbalance counts as often as the row has targets: mean of the tokens'
    losses + weight x mean of the rows' imbalance by targets, whatever the split into micro-batches.
    It is for training; an evaluation tells the tokens' losses alone.
    """

    architecture: "Architecture" = "causal_lm"

    def __init__(self, balance: RouterBalance | None = None) -> None:
        self._balance = balance

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head. RecipeError if it has no experts to balance."""
        from torch import nn

        if self._balance is not None:
            require_routers(backbone)
        return nn.ModuleDict()

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """Rows and the flat positions [T] that predict; nothing is random."""
        import torch

        del seed
        rows = Rows.of(examples)
        segments = rows.segments
        predicts = np.zeros(segments.shape, dtype=np.bool_)
        predicts[:, :-1] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        at = np.flatnonzero(predicts)
        tensors = stack(rows, sources)
        tensors |= {
            "at": torch.from_numpy(at),
            "labels": tensors["tokens"].flatten()[torch.from_numpy(at + 1)],
        }
        targets = np.count_nonzero(predicts, axis=1)
        return batch_of(tensors, rows.keys.source, targets, rows.layout.filled(), sources)

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy of the next tokens, and in training the imbalance of the experts."""
        if self._balance is not None and learner.backbone.training:
            return self._balanced(self._balance.weight, learner.backbone, tensors)
        logits = learner.backbone(**isolated_inputs(learner.backbone, tensors)).logits
        return _next_tokens(logits, tensors)

    def _balanced(
        self, weight: float, backbone: "nn.Module", tensors: Mapping[str, "Tensor"]
    ) -> "Loss":
        import torch

        from engine.protocols import Loss

        logits, layers = routed(backbone, isolated_inputs(backbone, tensors))
        tokens = _next_tokens(logits, tensors)
        rows, width = tensors["tokens"].shape
        config: Any = backbone.config
        uneven = imbalance(layers, config.num_experts_per_tok, tensors["segments"] > 0)
        weighted = weight * targets_of_rows(tensors["at"] // width, rows) * uneven
        balance = summed(weighted, torch.arange(rows, device=uneven.device), tensors["sources"])
        return Loss(tokens.total + balance.total, tokens.by_source + balance.by_source)


def _next_tokens(logits: "Tensor", tensors: Mapping[str, "Tensor"]) -> "Loss":
    """Cross-entropy at the targets, from logits [B, L, V]."""
    from torch.nn.functional import cross_entropy

    width = logits.shape[1]
    chosen = logits.flatten(0, 1).index_select(0, tensors["at"]).float()
    losses = cross_entropy(chosen, tensors["labels"], reduction="none")
    return summed(losses, tensors["at"] // width, tensors["sources"])
