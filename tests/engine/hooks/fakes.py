"""A backend that only adds over ranks, and records and batches with known numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from engine.hooks import Throughput
from engine.protocols import Batch, Fragment, Loss, StepRecord
from tests.engine.checkpoint.fakes import ThreadRank

SOURCES = ("general", "domain")


class FakeBackend:
    """One rank of several threads, or the only one; ``evaluate`` gives the batch's ``loss``.

    Under ``swapped`` weights it gives half of that.
    """

    device = torch.device("cpu")

    def __init__(self, ranks: ThreadRank | None = None) -> None:
        self._ranks = ranks
        self.rank = ranks.rank() if ranks else 0
        self.world = ranks.world() if ranks else 1
        self.reductions = 0
        self.rates = {"matrices": 1.0, "vectors": 0.5}
        self.measure_update = False
        self.evaluated = 0
        self.scale = 1.0

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        self.reductions += 1
        if self._ranks is None:
            return tensor
        gathered = self._ranks.all_gather_object(tensor.clone())
        return torch.stack(gathered).sum(0)

    def update_norm(self) -> torch.Tensor | None:
        return torch.tensor(0.25) if self.measure_update else None

    def fragments(self) -> Iterator[Fragment]:
        """A weight of norm 3 on each rank, and a state of the optimizer."""
        for key in ("fp32", "exp_avg"):
            yield Fragment(f"of rank {self.rank}", key, (9,), 0, torch.ones(9))

    def extra_state(self) -> dict[str, Any]:
        return {"loss_scale": {"cur_scale": 1024.0}}

    def evaluate(self, batch: Batch) -> Loss:
        self.evaluated += 1
        total = self.scale * batch.tensors["loss"]
        return Loss(total, total.reshape(1), total.reshape(1, 1) / 2)

    @contextmanager
    def swapped(self, key: str) -> Iterator[None]:
        assert key == "ema"
        self.scale = 0.5
        yield
        self.scale = 1.0


class FixedThroughput(Throughput):
    """Measures nothing."""

    def __init__(self) -> None:
        super().__init__("masked_lm", 8)

    def start(self, backend: Any) -> None:
        del backend

    def speed(self, tokens: float, targets: float, seconds: float) -> float:
        del targets, seconds
        return 1e12 * tokens

    def utilisation(self, tokens: float, targets: float, seconds: float) -> float:
        del tokens, targets, seconds
        return 0.5


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, Mapping[str, Any]]] = []

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        self.written.append((kind, step, numbers))


def record(step: int, rank: int = 0, world: int = 1, **changes: Any) -> StepRecord:
    """Of the step that ends as number ``step``: unequal losses and counts, this rank's share."""
    rng = torch.Generator().manual_seed(step)
    by_source = torch.rand(world, 2, generator=rng)[rank]
    losses = torch.cat([by_source.sum().reshape(1), by_source])
    targets = torch.tensor([3.0 + step, 5.0], dtype=torch.float64)
    tokens = torch.tensor([20.0, 10.0 + step], dtype=torch.float64)
    counts = torch.cat([targets.sum().reshape(1), tokens.sum().reshape(1), targets, tokens])
    given = {
        "losses": losses,
        "measures": by_source[None] / 2,
        "counts": counts,
        "gradient_norm": torch.tensor(float(step)),
        "lr": 0.1 / step,
        "seconds": 2.0,
    }
    return StepRecord(**(given | changes))


def scored(loss: float, count: int) -> Batch:
    """A batch whose summed loss is known."""
    return Batch({"loss": torch.tensor(loss)}, count, count, (count,), (count,))
