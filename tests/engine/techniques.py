"""Every training technique that lives in the optimizer or around the objective, ready to build."""

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.averaging import AveragingConfig, MovingAverage, StochasticAverage
from engine.backends import DeepSpeedZero, Plain
from engine.learner import Learner
from engine.optimization import AdamW, Lion, Muon, OptimizerConfig
from engine.penalties import Distillation, StartingPoint
from engine.penalties.distillation import DistilledObjective
from engine.penalties.ewc import ElasticPull
from tests.engine import tiny

STEPS = 5
RATE = 1e-2


class Known:
    """Importances and anchors as a fisher stage saves them, made up from the names."""

    folder = Path("importances")

    def __init__(self, learner: torch.nn.Module, number: int) -> None:
        self._shapes = {name: tuple(p.shape) for name, p in learner.named_parameters()}
        self._number = number

    def has(self, name: str, key: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def whole(self, name: str, key: str) -> torch.Tensor:
        rng = torch.Generator().manual_seed(zlib.crc32(f"{self._number} {name} {key}".encode()))
        values = torch.rand(self._shapes[name], generator=rng)
        return values.flatten() if key == "fisher" else values.flatten() - 0.5

    def read(self, name: str, key: str, start: int, length: int) -> torch.Tensor:
        return self.whole(name, key)[start : start + length]


def no_pulls(learner: torch.nn.Module) -> list[Any]:
    return []


def elastic(tasks: int, strength: float = 3.0) -> Callable[[torch.nn.Module], list[Any]]:
    return lambda learner: [ElasticPull(strength, [Known(learner, task) for task in range(tasks)])]


@dataclass(frozen=True)
class Technique:
    """What is turned on beside full training with AdamW."""

    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(lr=RATE))
    pulls: Callable[[torch.nn.Module], list[Any]] = no_pulls
    averaging: AveragingConfig | None = None
    teacher: bool = False
    shape: str = "bert_tiny"
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.optimizer.lr

    def learner(self) -> Learner:
        own = tiny.learner(Path(tempfile.mkdtemp()), self.shape, **self.changes)
        if not self.teacher:
            return own
        other = tiny.learner(Path(tempfile.mkdtemp()), self.shape, **self.changes).backbone
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        config = Distillation(teacher="other", strength=2.0)
        return Learner(own.backbone, DistilledObjective(config, own.objective, lambda: other))

    def build(self, config: DeepSpeedZero | Plain) -> Any:
        learner = self.learner()
        average = self.averaging.build(STEPS) if self.averaging else None
        return config.build(learner, self.optimizer, self.pulls(learner), 0, average)


TECHNIQUES = {
    "adamw": Technique(),
    "lion": Technique(Lion(lr=1e-3, weight_decay=0.1)),
    "muon": Technique(Muon(lr=RATE, iterate_in="fp32")),
    "muon experts": Technique(Muon(lr=RATE, iterate_in="fp32"), shape="mixtral_tiny"),
    "layer decay": Technique(AdamW(lr=RATE, layer_decay=0.5)),
    "rates": Technique(AdamW(lr=RATE, rates={"backbone.bert.embeddings.": 0.1})),
    "l2_sp": Technique(pulls=lambda _: [StartingPoint(strength=1.0).build()]),
    "ewc": Technique(pulls=elastic(1)),
    "ewc of two tasks": Technique(pulls=elastic(2)),
    "distillation": Technique(teacher=True),
    "distillation of a decoder": Technique(teacher=True, shape="llama_tiny"),
    "ema": Technique(averaging=MovingAverage(decay=0.7)),
    "swa": Technique(averaging=StochasticAverage(start=2, every=2)),
    "all at once": Technique(
        Muon(lr=RATE, iterate_in="fp32", layer_decay=0.8),
        pulls=lambda learner: [
            *elastic(1, 0.05)(learner),
            StartingPoint(strength=0.05).build(),
        ],
        averaging=MovingAverage(decay=0.7),
        teacher=True,
    ),
}
