"""Labels drawn from the model's own predictions, for the Fisher information.

Their scores have mean zero and are independent, so the square of a batch's summed gradient is an
unbiased estimate of the sum of the targets' squares (Liu et al., 2023, arXiv:2305.14342); with the
data's labels it would be another matrix (Kunstner et al., 2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.example import Example
from data_pipeline.randomness import generators, keyed
from data_pipeline.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Architecture, Batch, LearnerModule, Loss, TokenObjective

DRAWS = "draws"
"""fp64 [T]: where in the predicted distribution each label is drawn."""


class SampledObjective:
    """An objective on labels of the model's own choice, without dropout."""

    def __init__(self, objective: "TokenObjective") -> None:
        self._objective = objective
        self.architecture: Architecture = objective.architecture
        self.measures = objective.measures

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """The objective's own."""
        return self._objective.modules(backbone)

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """As the objective does, and a number in [0, 1) for each target, keyed by its row."""
        import torch

        batch = self._objective.collate(examples, seed, sources)
        rows = Rows.of(examples)
        width = rows.tokens.shape[1]
        counts = np.bincount(batch.tensors["at"].numpy() // width, minlength=len(rows))
        rngs = generators(keyed(seed, "labels"), rows.keys)
        drawn = [rng.random(count) for rng, count in zip(rngs, counts.tolist(), strict=True)]
        draws = torch.from_numpy(np.concatenate([*drawn, np.empty(0)]))
        return replace(batch, tensors={**batch.tensors, DRAWS: draws})

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """The loss on labels drawn by the model as it is."""
        import torch

        backbone = learner.backbone
        was = backbone.training
        backbone.eval()
        logits = self._objective.logits(backbone, tensors)
        backbone.train(was)
        with torch.no_grad():
            reached = logits.double().softmax(1).cumsum(1)
            wanted = tensors[DRAWS][:, None] * reached[:, -1:]
            labels = torch.searchsorted(reached, wanted, right=True)[:, 0]
            labels = labels.clamp(max=logits.shape[1] - 1)
        return self._objective.told(logits, labels, tensors)
