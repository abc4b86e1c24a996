"""Trains a tiny compiled learner in a process of its own, from the start or a saved step on."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from engine.compilation import Compilation
from engine.learner import Learner
from tests.engine import tiny

STEPS = 6
# Documents of each row of a micro-batch: every step predicts another number of tokens.
SIZES = (
    ((9, 7), (24,), (5,), (8, 8, 8)),
    ((24,), (3, 3), (4,), (5,)),
    ((24,), (24,), (24,), (20,)),
    ((3,), (4,), (5,), (6,)),
    ((12, 12), (8, 8), (24,), (7,)),
    ((10,), (9,), (8,), (7,)),
)


def batch(of: Learner, step: int, lengths: Any) -> dict[str, torch.Tensor]:
    """The tensors of one micro-batch, a row for each entry of ``lengths``."""
    rows = [tiny.example(10 * step + n, n % 2, some) for n, some in enumerate(lengths)]
    return dict(of.objective.collate(rows, 5, 2).tensors)


def drive(folder: Path, first: int, *, compiled: bool = True) -> dict[str, Any]:
    """Losses from ``first`` on and the weights at the end; those of half-way are kept on disk."""
    learner = tiny.learner(folder, "gpt2_tiny", n_layer=1)
    if first:
        learner.load_state_dict(torch.load(folder / "saved.pt"))
    if compiled:
        Compilation().apply(learner)
    losses = []
    for step in range(first, STEPS):
        if step == STEPS // 2 and not first and compiled:
            torch.save(learner.state_dict(), folder / "saved.pt")
        total, _ = learner(batch(learner, step, SIZES[step]))
        total.backward()
        losses.append(total.detach())
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.sub_(parameter.grad, alpha=1e-3)
        learner.zero_grad()
    graphs = counters["stats"]["unique_graphs"]
    return {"losses": torch.stack(losses), "weights": learner.state_dict(), "graphs": graphs}


if __name__ == "__main__":
    place, begin = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(drive(place, begin), place / f"from-{begin}.pt")
