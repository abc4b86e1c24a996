"""Causal language modelling (GPT, Llama): each token from those before it in its document."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.rows import Rows
from engine.isolation import isolated_inputs
from engine.rows import batch_of, stack, summed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Architecture, Batch, LearnerModule, Loss


class CausalLanguageModelling(Config):
    """Predict the next token; never across the border of two documents."""

    name: Literal["clm"] = "clm"

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
        return CausalObjective()


class CausalObjective:
    """Targets are the tokens whose predecessor lies in the same document."""

    architecture: "Architecture" = "causal_lm"

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head."""
        from torch import nn

        del backbone
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
        from torch.nn.functional import cross_entropy

        logits = learner.backbone(**isolated_inputs(learner.backbone, tensors)).logits
        width = logits.shape[1]
        chosen = logits.flatten(0, 1).index_select(0, tensors["at"]).float()
        losses = cross_entropy(chosen, tensors["labels"], reduction="none")
        return summed(losses, tensors["at"] // width, tensors["sources"])
