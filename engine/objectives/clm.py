"""Causal language modelling (GPT, Llama, Mixtral): each token from those before it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.rows import Rows
from engine.isolation import isolated_inputs
from engine.objectives.routing import ROUTED, RouterBalance, imbalance, require_routers, routed
from engine.rows import batch_of, shared_out, stack, summed, targets_of_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.objectives.vocabulary import TargetLosses
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

    @property
    def measures(self) -> tuple[str, ...]:
        """Accuracy; with ``balance`` the imbalance of the experts, too, without its weight."""
        return ("accuracy",) if self._balance is None else ("accuracy", "balance")

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head. RecipeError if it has no experts to balance."""
        from torch import nn

        from engine.objectives.vocabulary import prepare

        if self._balance is not None:
            require_routers(backbone)
        prepare(backbone)
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
        from engine.objectives.vocabulary import losses_of

        if self._balance is not None:
            weight = self._balance.weight if learner.backbone.training else 0.0
            return self._balanced(weight, learner.backbone, tensors)
        model: Any = learner.backbone
        inputs = isolated_inputs(learner.backbone, tensors)
        if model.config.model_type in _WITH_A_LAYER:
            return _next_tokens(model, model.base_model(**inputs)[0], tensors)
        logits = model(**inputs).logits.flatten(0, 1).index_select(0, tensors["at"])
        return _shared_out(losses_of(logits, tensors["labels"]), tensors)

    def _balanced(
        self, weight: float, backbone: "nn.Module", tensors: Mapping[str, "Tensor"]
    ) -> "Loss":
        import torch

        from engine.protocols import Loss

        hidden, layers = routed(backbone, isolated_inputs(backbone, tensors))
        tokens = _next_tokens(backbone, hidden, tensors)
        rows, width = tensors["tokens"].shape
        config: Any = backbone.config
        uneven = imbalance(layers, config.num_experts_per_tok, tensors["segments"] > 0)
        uneven = uneven * targets_of_rows(tensors["at"] // width, rows)
        balance = summed(uneven, torch.arange(rows, device=uneven.device), tensors["sources"])
        return Loss(
            tokens.total + weight * balance.total,
            tokens.by_source + weight * balance.by_source,
            torch.cat([tokens.measures, balance.by_source[None]]),
        )


# Their head is one layer and nothing else, ROUTED's likewise: it sees the targets alone.
_WITH_A_LAYER = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"}) | ROUTED


def _next_tokens(model: Any, hidden: "Tensor", tensors: Mapping[str, "Tensor"]) -> "Loss":
    """Cross-entropy at the targets, from hidden states [B, L, D]."""
    from engine.objectives.vocabulary import target_losses

    chosen = hidden.flatten(0, 1).index_select(0, tensors["at"])
    losses = target_losses(model.get_output_embeddings(), chosen, tensors["labels"])
    return _shared_out(losses, tensors)


def _shared_out(losses: "TargetLosses", tensors: Mapping[str, "Tensor"]) -> "Loss":
    each, row = (losses.each, losses.hits), tensors["at"] // tensors["tokens"].shape[1]
    return shared_out(losses.total, each, row, tensors["sources"])
