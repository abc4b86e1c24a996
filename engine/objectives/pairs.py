"""Sentence pairs beside masked language modelling: does the second part follow the first?

Next-sentence prediction (Devlin et al., 2019) or sentence order (Lan et al., 2020), as the packing
says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.packing import Packing
from data_pipeline.randomness import keyed
from data_pipeline.rows import Rows
from engine.rows import shared, summed, targets_of_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.objectives.mlm import MaskedObjective
    from engine.protocols import Architecture, Batch, LearnerModule, Loss


class PairsConfig(Config):
    """The pair head and how much its loss counts."""

    weight: float = Field(1.0, gt=0, description="of the pair loss, beside the masked tokens'")


class MayHavePairs(Protocol):
    """An objective's config, as far as pairs go."""

    @property
    def needs_pairs(self) -> bool:
        """Whether it predicts something of sentence pairs."""
        ...


def require_fitting(objective: MayHavePairs, packing: Packing) -> None:
    """ValueError unless rows are pairs exactly where the objective predicts pairs."""
    paired = packing.name == "sentence_pairs"
    if objective.needs_pairs and not paired:
        msg = (
            f"objective.pairs needs rows of sentence pairs, but packing is {packing.name}; "
            "give data.packing: {name: sentence_pairs}, or leave pairs out"
        )
        raise ValueError(msg)
    if paired and not objective.needs_pairs:
        msg = (
            "packing sentence_pairs is for an objective that predicts pairs; "
            "give objective: {name: mlm, pairs: {}}, or another packing"
        )
        raise ValueError(msg)


class PairsObjective:
    """Masked language modelling, and a classifier on each row's first token.

    A row's pair loss counts as often as the row has masked targets, so that what the backend
    divides by, the global number of targets, is right for both: mean of the masked tokens' losses
    + weight x mean of the pairs' losses by targets, whatever the split into micro-batches. A row
    without a pair (label -1) adds nothing to the second. The head is not exported.
    """

    def __init__(self, config: PairsConfig, masked: "MaskedObjective") -> None:
        self._weight = config.weight
        self._masked = masked
        self.architecture: Architecture = masked.architecture
        self.measures = (*masked.measures, "pair_loss", "pair_accuracy")

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """``pair``: BERT's pooler and a layer for two classes, the same at every start."""
        import torch
        from torch import nn

        from engine.objectives.vocabulary import prepare

        prepare(backbone)
        config: Any = backbone.config
        width = int(config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(0, "pair head"))
            pooler, classes = nn.Linear(width, width), nn.Linear(width, 2)
            for layer in (pooler, classes):
                nn.init.normal_(layer.weight, std=float(getattr(config, "initializer_range", 0.02)))
                nn.init.zeros_(layer.bias)
        return nn.ModuleDict({"pair": nn.Sequential(pooler, nn.Tanh(), classes)})

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """What masking makes, with ``parts`` int64 [B, L] and ``pairs`` int64 [B], -1 for none."""
        import torch

        rows = Rows.of(examples)
        batch = self._masked.collate(rows, seed, sources)
        more = {
            "parts": torch.from_numpy(rows.parts.astype(np.int64)),
            "pairs": torch.from_numpy(rows.labels),
        }
        return replace(batch, tensors={**batch.tensors, **more})

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy at the targets, and of the pairs, each weighted by its row's targets."""
        import torch
        from torch.nn.functional import cross_entropy

        from engine.objectives.mlm import score
        from engine.protocols import Loss

        scores = score(learner.backbone, tensors)
        rows, width = tensors["tokens"].shape
        row = tensors["at"] // width
        masked = scores.losses
        tokens = shared(masked, tensors)
        pairs = tensors["pairs"]
        targets = targets_of_rows(row, rows)
        head = learner.heads["pair"]
        logits = head(scores.first.to(next(head.parameters()).dtype)).float()
        told = cross_entropy(logits, pairs, ignore_index=-1, reduction="none")
        hits = (logits.argmax(1) == pairs).float()
        weighted = summed(
            self._weight * targets * told,
            torch.arange(rows, device=pairs.device),
            tensors["sources"],
            (targets * told.detach(), targets * hits),
        )
        measures = torch.cat([tokens.measures, weighted.measures])
        return Loss(tokens.total + weighted.total, tokens.by_source + weighted.by_source, measures)
