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
from engine.rows import batch_of, shared, stack, summed, targets_of_rows

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

    def build(
        self, special: Mapping[str, int], vocabulary_size: int
    ) -> "CausalObjective | BalancedObjective":
        """The objective; it needs nothing of the vocabulary."""
        del special, vocabulary_size
        plain = CausalObjective()
        return plain if self.balance is None else BalancedObjective(self.balance, plain)


class CausalObjective:
    """Targets are the tokens whose predecessor lies in the same document."""

    architecture: "Architecture" = "causal_lm"
    measures = ("accuracy",)

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head."""
        from torch import nn

        from engine.objectives.vocabulary import prepare

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
        """Cross-entropy of the next tokens."""
        from engine.objectives.vocabulary import losses_of, target_losses

        seen, output = _at_targets(learner.backbone, tensors)
        if output is None:
            return shared(losses_of(seen, tensors["labels"]), tensors)
        return shared(target_losses(output, seen, tensors["labels"]), tensors)

    def logits(self, backbone: "nn.Module", tensors: Mapping[str, "Tensor"]) -> "Tensor":
        """Scores of all tokens at the targets, [T, V]."""
        seen, output = _at_targets(backbone, tensors)
        found: Tensor = seen if output is None else output(seen)
        return found

    def told(self, logits: "Tensor", labels: "Tensor", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy of such scores, with these labels."""
        from engine.objectives.vocabulary import losses_of

        return shared(losses_of(logits, labels), tensors)


class BalancedObjective:
    """Next tokens, and experts that are used equally.

    A row's imbalance counts as often as the row has targets: mean of the tokens' losses + weight x
    mean of the rows' imbalance by targets, whatever the split into micro-batches. It is for
    training: an evaluation tells it, and leaves it out of the loss.
    """

    def __init__(self, balance: RouterBalance, causal: CausalObjective) -> None:
        self._balance = balance
        self._causal = causal
        self.architecture: Architecture = causal.architecture
        self.measures = (*causal.measures, "balance")

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head. RecipeError if it has no experts to balance."""
        require_routers(backbone)
        return self._causal.modules(backbone)

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """As for next tokens alone."""
        return self._causal.collate(examples, seed, sources)

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy of the next tokens, and in training the imbalance of the experts."""
        import torch

        from engine.objectives.vocabulary import target_losses
        from engine.protocols import Loss

        model: Any = learner.backbone
        hidden, layers = routed(model, isolated_inputs(model, tensors))
        chosen = hidden.flatten(0, 1).index_select(0, tensors["at"])
        losses = target_losses(model.get_output_embeddings(), chosen, tensors["labels"])
        tokens = shared(losses, tensors)
        rows, width = tensors["tokens"].shape
        uneven = imbalance(layers, model.config.num_experts_per_tok, tensors["segments"] > 0)
        uneven = uneven * targets_of_rows(tensors["at"] // width, rows)
        balance = summed(uneven, torch.arange(rows, device=uneven.device), tensors["sources"])
        weight = self._balance.weight if learner.backbone.training else 0.0
        return Loss(
            tokens.total + weight * balance.total,
            tokens.by_source + weight * balance.by_source,
            torch.cat([tokens.measures, balance.by_source[None]]),
        )


# Their head is one layer and nothing else, ROUTED's likewise: it sees the targets alone.
_WITH_A_LAYER = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"}) | ROUTED


def _at_targets(
    backbone: "nn.Module", tensors: Mapping[str, "Tensor"]
) -> "tuple[Tensor, nn.Module | None]":
    """What the layer onto the vocabulary is to see, [T, D], and that layer.

    Of an architecture that is not known the logits [T, V] and no layer.
    """
    model: Any = backbone
    inputs = isolated_inputs(backbone, tensors)
    if model.config.model_type in _WITH_A_LAYER:
        hidden = model.base_model(**inputs)[0].flatten(0, 1)
        return hidden.index_select(0, tensors["at"]), model.get_output_embeddings()
    return model(**inputs).logits.flatten(0, 1).index_select(0, tensors["at"]), None
