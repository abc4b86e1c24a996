"""One class for each row, by cross-entropy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.example import Example
from engine.isolation import isolated_inputs
from engine.rows import BOUNDS, batch_of, bounds_of, one_hot, summed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from downstream.heads import Head
    from engine.protocols import Architecture, Batch, LearnerModule, Loss

WIDTH_STEP = 8
"""Rows are padded to a multiple of this: few shapes, for which kernels are prepared once."""


class Classification:
    """An engine objective over rows of one text each; rows may differ in length.

    Attributes:
        head: of the classifier that it adds.
        classes: how many.
        padding: the id that fills a batch up; nothing attends to it.
        seed: of the head's first weights.
    """

    architecture: "Architecture" = "encoder"
    measures = ("accuracy",)

    def __init__(self, head: "Head", classes: int, padding: int, seed: int) -> None:
        self.head = head
        self.classes = classes
        self.padding = padding
        self.seed = seed
        self._recorded: list[Tensor] | None = None

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """The classifier."""
        from torch import nn

        return nn.ModuleDict({"classifier": self.head.build(backbone, self.classes, self.seed)})

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """Rows padded to the longest among them; nothing here is random."""
        del seed
        return padded_batch(examples, self.padding, sources)

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy of each row's class."""
        import torch
        from torch.nn.functional import cross_entropy

        hidden = learner.backbone(**isolated_inputs(learner.backbone, tensors))[0]
        logits = learner.heads["classifier"](hidden, tensors["segments"] > 0).float()
        if self._recorded is not None:
            self._recorded.append(logits.detach())
        losses = cross_entropy(logits, tensors["labels"], reduction="none")
        rows = torch.arange(len(losses), device=losses.device)
        hits = (logits.argmax(1) == tensors["labels"]).float()
        return summed(losses, rows, tensors["sources"], (hits,))

    @contextmanager
    def recording(self) -> Iterator[list["Tensor"]]:
        """Keeps the logits [B, C] of every batch scored inside.

        A backend hands out losses only, and at ZeRO stage 3 nobody but the backend can run the
        model; this way predictions come from any backend.
        """
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None


def padded_batch(examples: Sequence[Example], padding: int, sources: int) -> "Batch":
    """Labelled rows of unequal length as a Batch; ``padding``: the id that fills it up."""
    import torch

    longest = max(len(example.tokens) for example in examples)
    width = -(-longest // WIDTH_STEP) * WIDTH_STEP
    fills = {"tokens": padding, "segments": 0, "positions": 0}
    tensors = {name: _padded(examples, name, (width, fill)) for name, fill in fills.items()}
    tensors[BOUNDS] = torch.from_numpy(bounds_of(tensors["segments"].numpy()))
    tensors["labels"] = torch.tensor([example.label for example in examples])
    source = np.array([example.key.source for example in examples], np.int64)
    tensors["sources"] = one_hot(source, sources)
    filled = np.array([np.count_nonzero(example.segments) for example in examples])
    return batch_of(tensors, source, np.ones_like(source), filled, sources)


def _padded(examples: Sequence[Example], field: str, shape: tuple[int, int]) -> "Tensor":
    import torch

    width, fill = shape
    rows = np.full((len(examples), width), fill, np.int64)
    for row, example in zip(rows, examples, strict=True):
        values = getattr(example, field)
        row[: len(values)] = values
    return torch.from_numpy(rows)
