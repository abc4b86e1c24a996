"""One cell of the fine-tuning table: one arm, one seed, trained by the engine's loop."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import NumericalError
from data_pipeline.example import Example
from data_pipeline.randomness import keyed
from downstream.evaluation.metrics import Metric, scores
from downstream.row_order import RowOrder, evaluation_batches
from downstream.tasks.rows import Side
from engine.protocols import Backend, Hook, Progress, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

    from downstream.objectives.classification import Classification
    from engine.backends import BackendConfig
    from engine.optimization import OptimizerConfig, ScheduleConfig

PRIMARY: Metric = "macro_f1"
DEGENERATE_RULE = (
    "A run counts as degenerate if, at its chosen epoch, its accuracy on dev is not above that of "
    "always giving the class most frequent in train. Degenerate runs are flagged, never left out."
)
PREDICTED_TOGETHER = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every cell is trained."""

    optimizer: "OptimizerConfig"
    schedule: "ScheduleConfig"
    backend: "BackendConfig"
    epochs: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Which one it is."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.arm}.seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch left behind.

    Attributes:
        epoch: from 1.
        loss: mean over the epoch's training rows, with dropout.
        dev: scores.
    """

    epoch: int
    loss: float
    dev: Mapping[Metric, float]


@dataclass(frozen=True, slots=True)
class CellResult:
    """A finished cell.

    Attributes:
        chosen_epoch: the first of the best on dev by macro-F1.
        probabilities: fp32 [n, C] on dev and test, by the model after the chosen epoch.
        degenerate: by DEGENERATE_RULE.
        steps: optimizer steps.
        tokens: real tokens trained on.
        seconds: wall time, of training and of choosing.
    """

    epochs: Sequence[Epoch]
    chosen_epoch: int
    probabilities: Mapping[Side, NDArray[np.float32]]
    degenerate: bool
    steps: int
    tokens: int
    seconds: float

    def summary(self, examples: Mapping[Side, Sequence[Example]]) -> dict[str, Any]:
        """JSON-able, without the predictions but with their scores."""
        sides: dict[str, Any] = {
            side: scores([example.label for example in examples[side]], given.argmax(1).tolist())
            for side, given in self.probabilities.items()
        }
        return {
            "chosen_epoch": self.chosen_epoch,
            "degenerate": self.degenerate,
            **sides,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
        }


def run_cell(
    backend: Backend,
    objective: "Classification",
    examples: Mapping[Side, Sequence[Example]],
    recipe: Recipe,
    seed: int,
) -> CellResult:
    """Train a backend that holds a fresh learner, and predict dev and test.

    All ranks of the backend call it; each gets the result.
    """
    from engine.batches import Batches
    from engine.delivery import delivery_to
    from engine.loop import train
    from engine.protocols import Run

    began = perf_counter()
    lengths = np.array([len(example.tokens) for example in examples["train"]])
    order = RowOrder(lengths, keyed(seed, "order"), recipe.backend.plan(backend.world))
    ends = order.epoch_ends(recipe.epochs)
    choosing = ChooseEpoch(Predictor(backend, objective), examples, ends)

    def make(step: int) -> list[Any]:
        parts = order.step(step, backend.rank)
        return [objective.collate([examples["train"][i] for i in rows], seed, 1) for rows in parts]

    with Batches(make, 0, ends[-1], delivery=delivery_to(backend.device)) as batches:
        lr = recipe.optimizer.lr
        run = Run(backend, batches, recipe.schedule, lr, ends[-1], seed, (choosing,))
        train(run)
    return choosing.result(perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Class probabilities of examples, computed by all ranks of a backend together."""

    backend: Backend
    objective: "Classification"

    def __call__(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        """fp32 [n, C]; every rank must call it, and gets all of it."""
        from engine import distributed

        batches = evaluation_batches([len(e.tokens) for e in examples], PREDICTED_TOGETHER)
        world, rank = self.backend.world, self.backend.rank
        # At ZeRO stage 3 every rank must run the model equally often: the last ones repeat a batch.
        rounds = -(-len(batches) // world)
        mine = [batches[(turn * world + rank) % len(batches)] for turn in range(rounds)]
        logits = [self._logits([examples[i] for i in rows]) for rows in mine]
        gathered = [(mine, logits)]
        if world > 1:
            gathered = distributed.all_gather_object((mine, logits))
        result = np.zeros((len(examples), self.objective.classes), np.float32)
        for rows_of_rank, logits_of_rank in gathered:
            for rows, values in zip(rows_of_rank, logits_of_rank, strict=True):
                result[rows] = _softmax(values)
        if not np.isfinite(result).all():
            msg = "fine-tuning: predictions are not finite; a lower lr is the usual remedy"
            raise NumericalError(msg)
        return result

    def _logits(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        batch = self.objective.collate(examples, 0, 1)
        with self.objective.recording() as recorded:
            self.backend.evaluate(batch)
        values: NDArray[np.float32] = recorded[0].cpu().numpy()
        return values


@dataclass
class ChooseEpoch(Hook):
    """Scores dev after every epoch and keeps the predictions of the best one so far."""

    predictor: Predictor
    examples: Mapping[Side, Sequence[Example]]
    ends: Sequence[int]
    epochs: list[Epoch] = field(default_factory=list)
    chosen: int = 0
    kept: dict[Side, NDArray[np.float32]] = field(default_factory=dict)
    tokens: int = 0
    _sums: "Tensor | None" = None

    name = "choose_epoch"

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Add up; at the end of an epoch read the sums and score dev."""
        import torch

        loss = record.losses[:1].double()
        sums = torch.cat([loss, record.counts[:2].to(loss) / backend.world])
        self._sums = sums if self._sums is None else self._sums + sums
        if progress.step in self.ends:
            self._end_epoch(backend, progress.step)

    def result(self, seconds: float) -> CellResult:
        """What was chosen, after the last step."""
        best = self.epochs[self.chosen - 1]
        return CellResult(
            epochs=tuple(self.epochs),
            chosen_epoch=self.chosen,
            probabilities=dict(self.kept),
            degenerate=best.dev["accuracy"] <= self._majority(),
            steps=self.ends[-1],
            tokens=self.tokens,
            seconds=seconds,
        )

    def _end_epoch(self, backend: Backend, step: int) -> None:
        if self._sums is None:
            return
        loss, count, tokens = backend.sum_over_ranks(self._sums).tolist()
        self._sums = None
        self.tokens += round(tokens)
        mean = loss / count
        if not isfinite(mean):
            msg = (
                f"fine-tuning: the loss is {mean} by step {step}; lower the learning rate, or "
                "check the model it starts from"
            )
            raise NumericalError(msg)
        on_dev = self.predictor(self.examples["dev"])
        truth = [example.label for example in self.examples["dev"]]
        dev = scores(truth, on_dev.argmax(1).tolist())
        self.epochs.append(Epoch(len(self.epochs) + 1, mean, dev))
        if not self.chosen or dev[PRIMARY] > self.epochs[self.chosen - 1].dev[PRIMARY]:
            self.chosen = len(self.epochs)
            self.kept = {"dev": on_dev, "test": self.predictor(self.examples["test"])}

    def _majority(self) -> float:
        """Dev accuracy of the class that train holds most of."""
        labels = np.array([example.label for example in self.examples["train"]])
        most = np.bincount(labels).argmax()
        return float(np.mean([example.label == most for example in self.examples["dev"]]))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
