"""What the adaptations' tests share: one config of each kind, and which shapes it fits."""

from typing import Any

import torch

from engine.adaptation import (
    Adapter,
    BiasOnly,
    FrozenLayers,
    FullTraining,
    LowRank,
    Prefix,
    Prompt,
)
from engine.backends import Plain
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.protocols import Batch, Run
from tests.engine import tiny

KINDS: dict[str, Any] = {
    "full": FullTraining(),
    "lora": LowRank(rank=2),
    "bitfit": BiasOnly(),
    "frozen": FrozenLayers(layers=1),
    "houlsby": Adapter(placement="houlsby", size=8, activation="gelu"),
    "pfeiffer": Adapter(placement="pfeiffer", size=8),
    "parallel": Adapter(placement="parallel", size=8, scale=2.0),
    "prefix": Prefix(length=3),
    "prompt": Prompt(length=3),
}
ADDED = ("houlsby", "pfeiffer", "parallel", "prefix", "prompt")
AS_BEFORE = ("full", "lora", "bitfit", "frozen", "houlsby", "pfeiffer", "parallel")
"""A fresh one leaves the model's answers as they were."""
_EVERYWHERE = ("lora", "houlsby", "prefix")
_SOME = {
    "full": ("bert_tiny",),
    "bitfit": ("bert_tiny", "gpt2_tiny"),
    "frozen": ("bert_tiny", "modernbert_tiny", "llama_tiny"),
    "pfeiffer": ("modernbert_tiny", "gpt2_tiny"),
    "parallel": ("bert_tiny", "modernbert_tiny", "llama_tiny"),
    "prompt": ("bert_tiny", "roberta_tiny", "modernbert_tiny", "gpt2_tiny", "llama_tiny"),
}
FITTING = [
    *((kind, shape) for kind in _EVERYWHERE for shape in tiny.SHAPES),
    *((kind, shape) for kind, shapes in _SOME.items() for shape in shapes),
]


def rows(kind: str, count: int = 4) -> list[Any]:
    """Examples; of one document each where the adaptation needs that."""
    if kind != "prompt":
        return tiny.examples(0, count)
    return [tiny.example(i, i % 2, ((24,), (9,), (17,))[i % 3]) for i in range(count)]


def batch(learner: Any, kind: str) -> Batch:
    made: Batch = learner.objective.collate(rows(kind), 5, 2)
    return made


def train_on(learner: Any, batch: Batch, steps: int, lr: float = 1e-2) -> float:
    """The loss of the batch without dropout, after so many steps on it."""
    backend = Plain(config={"train_batch_size": 4}).build(learner, AdamW(lr=lr), (), 0)
    if steps:
        train(Run(backend, iter([[batch]] * steps), Constant(), lr, steps, 0))
    return float(backend.evaluate(batch).total)


def loss(learner: Any, batch: Batch) -> float:
    learner.eval()
    with torch.no_grad():
        return float(learner(batch.tensors)[0])


def values(learner: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.named_parameters()}
