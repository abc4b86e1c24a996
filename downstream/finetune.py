"""The fine-tuning stage: every arm with every seed on one task, each cell by the engine's loop."""

import gc
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, StringConstraints, field_validator

from configs import deepspeed_facts
from configs.deepspeed_json import AUTO, precision, read_deepspeed
from configs.errors import RecipeError
from configs.stage import Runs, StageConfig, StageContext
from data_pipeline.example import Example
from data_pipeline.randomness import keyed
from downstream.cell import DEGENERATE_RULE, Cell, CellResult, Recipe, run_cell
from downstream.heads import Head, LinearHead
from downstream.records import (
    digest_of_files,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from downstream.tasks.rows import Side, TaskData, task_fingerprint
from engine.backends import BackendConfig
from engine.models import PretrainedModel
from engine.optimization import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from downstream.objectives.classification import Classification
    from engine.protocols import Backend

ArmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]*$")]
PREDICTED: tuple[Side, ...] = ("dev", "test")
log = logging.getLogger(__name__)


class FinetuneStage(StageConfig):
    """Fine-tunes every arm with the same seeds, the same rows and the same settings.

    With the plain backend, cells are spread over the ranks; with DeepSpeed, all ranks work on
    one cell after the other. Finished cells are not run again.
    """

    RUNS: ClassVar[Runs] = "ranks"
    REDRAWN: ClassVar[frozenset[str]] = frozenset({deepspeed_facts.MICRO_BATCH})
    KEPT: ClassVar[frozenset[str]] = frozenset({"cells/*.json"})

    kind: Literal["finetune"] = "finetune"
    task: str = Field(description="location of a task folder")
    arms: dict[ArmName, str] = Field(min_length=1, description="name -> location of a model")
    seeds: tuple[int, ...] = Field(min_length=2, description="the same for every arm")
    length: int = Field(128, ge=4, description="tokens a text is cut at, special ones included")
    head: Head = LinearHead()
    epochs: PositiveInt = 3
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    backend: BackendConfig

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            msg = f"seeds {list(seeds)}: each must be another one"
            raise ValueError(msg)
        return seeds

    def run(self, context: StageContext) -> str:
        """Run what is missing of the table, gather it, and return the predictions' digest."""
        from engine import distributed

        table = Table(self, context)
        for cell in self._mine(table):
            table.run(cell)
        distributed.wait_for_all()
        fingerprint = table.gather() if distributed.rank() == 0 else ""
        return str(distributed.broadcast_object(fingerprint))

    def keyed_facts(self) -> dict[str, Any]:
        """The config, and of the backend what changes more than rounding."""
        facts = deepspeed_facts.computed(read_deepspeed(self.backend.config))
        return super().keyed_facts() | {"backend": facts}

    def shared_out(self, ranks: int) -> dict[str, str | int]:
        """ZeRO stage, offload, micro-batch, and which backend it is; plain cells are alone."""
        values, name = read_deepspeed(self.backend.config), self.backend.name
        return deepspeed_facts.shared_out(values, name, 1 if name == "plain" else ranks)

    def check(self, context: StageContext) -> None:
        """Task, models and the batch split against one another."""
        self.backend.check()
        self.backend.plan(1)
        if read_deepspeed(self.backend.config).get("zero_optimization") == AUTO:
            msg = (
                f"stage {context.name}: backend.config: zero_optimization 'auto' is worked out for "
                "pretraining alone; name a ZeRO stage here"
            )
            raise RecipeError(msg)
        if context.is_made(self.task):
            TaskData.open(context.locate(self.task))
            read_json(context.locate(self.task) / "card.json")
        for location in self.arms.values():
            PretrainedModel(location=location).check(context.is_made, context.locate)

    def cells(self) -> list[Cell]:
        """The table, seed by seed."""
        return [Cell(arm, seed) for seed in self.seeds for arm in self.arms]

    def _mine(self, table: "Table") -> list[Cell]:
        """The unfinished cells of this rank, as rank 0 sees them."""
        from engine import distributed

        found = [cell for cell in self.cells() if not table.is_finished(cell)]
        missing: list[Cell] = distributed.broadcast_object(found)
        if self.backend.name == "plain":
            return missing[distributed.rank() :: distributed.world()]
        return missing


class Table:
    """Arms by seeds: the files of the stage, and what the cells share."""

    def __init__(self, config: FinetuneStage, context: StageContext) -> None:
        self._config = config
        self._context = context
        self._task_folder = context.locate(config.task)
        self._data = TaskData.open(self._task_folder)
        self._encoded: dict[str, Mapping[Side, Sequence[Example]]] = {}

    def is_finished(self, cell: Cell) -> bool:
        """True if this stage, with this key, has finished it before."""
        path = self._cell_file(cell)
        return path.exists() and read_json(path)["key"] == self._context.key

    def run(self, cell: Cell) -> None:
        """Train a cell; rank 0 of its backend writes it down."""
        backend, objective, tokenizer = self._build(cell)
        examples = self._examples(tokenizer)
        config = self._config
        recipe = Recipe(config.optimizer, config.schedule, config.backend, config.epochs)
        seed = keyed(cell.seed, "finetune") >> 33
        result = run_cell(backend, objective, examples, recipe, seed)
        if backend.rank == 0:
            self._save(cell, result, examples)
        # An engine and its model form cycles; the next cell should not wait for the collector.
        del backend, objective
        gc.collect()

    def gather(self) -> str:
        """results.json from all cells; returns a digest of the predictions alone."""
        config = self._config
        cells = []
        for cell in config.cells():
            found = read_json(self._cell_file(cell))
            cells.append(asdict(cell) | {key: found[key] for key in found if key != "key"})
        write_json(
            self._context.folder / "results.json",
            {
                "task": read_json(self._task_folder / "card.json"),
                "task_fingerprint": task_fingerprint(self._task_folder),
                "labels": list(self._data.labels),
                "arms": dict(config.arms),
                "seeds": list(config.seeds),
                "degenerate_rule": DEGENERATE_RULE,
                "cells": cells,
            },
        )
        return digest_of_files(
            self._predictions_file(cell, side) for cell in config.cells() for side in PREDICTED
        )

    def _build(self, cell: Cell) -> "tuple[Backend, Classification, PreTrainedTokenizerBase]":
        from downstream.encoding import padding_id
        from downstream.objectives.classification import Classification
        from engine import distributed
        from engine.isolation import require_positions
        from engine.kernels.choice import quicken
        from engine.learner import Learner

        model = PretrainedModel(location=self._config.arms[cell.arm])
        loaded = model.build(self._context.locate, "encoder", cell.seed, shared_rows=False)
        require_positions(loaded.model, self._config.length, f"fine-tuning arm '{cell.arm}'")
        kind = precision(read_deepspeed(self._config.backend.config))
        quicken(loaded.model, distributed.device(), kind, self._config.length)
        head, classes = self._config.head, len(self._data.labels)
        objective = Classification(head, classes, padding_id(loaded.tokenizer), cell.seed)
        learner = Learner(loaded.model, objective)
        backend = self._config.backend.build(learner, self._config.optimizer, (), cell.seed)
        return backend, objective, loaded.tokenizer

    def _examples(self, tokenizer: "PreTrainedTokenizerBase") -> Mapping[Side, Sequence[Example]]:
        from downstream.encoding import encode

        own = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        if own not in self._encoded:
            fingerprint = task_fingerprint(self._task_folder)
            self._encoded[own] = encode(self._data, tokenizer, self._config.length, fingerprint)
        return self._encoded[own]

    def _save(
        self, cell: Cell, result: CellResult, examples: Mapping[Side, Sequence[Example]]
    ) -> None:
        for side in PREDICTED:
            lines = self._lines(side, result.probabilities[side])
            write_jsonl(self._predictions_file(cell, side), lines)
        summary = result.summary(examples)
        write_json(self._cell_file(cell), {"key": self._context.key, **summary})
        log.info(
            "%s: macro-F1 %.3f on dev after epoch %d, %.1f s",
            cell.name,
            summary["dev"]["macro_f1"],
            result.chosen_epoch,
            result.seconds,
        )

    def _lines(self, side: Side, probabilities: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
        labels = self._data.labels
        for row, given in zip(self._data.sides[side], probabilities, strict=True):
            yield {
                "id": row.id,
                "group": row.group,
                "label": row.label,
                "predicted": labels[int(given.argmax())],
                "probabilities": [round(float(value), 5) for value in given],
            }

    def _cell_file(self, cell: Cell) -> Path:
        return self._context.folder / "cells" / f"{cell.name}.json"

    def _predictions_file(self, cell: Cell, side: Side) -> Path:
        return predictions_file(self._context.folder, cell, side)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a finished fine-tuning stage predicted for one side.

    Attributes:
        truth: int64 [n].
        groups: int64 [n]; equal numbers for rows of one group.
        by_arm: arm -> int64 [S, n], seeds in the recipe's order.
    """

    truth: NDArray[np.int64]
    groups: NDArray[np.int64]
    by_arm: Mapping[str, NDArray[np.int64]]


def predictions_file(folder: Path, cell: Cell, side: Side) -> Path:
    """Where a cell's predictions lie in a fine-tuning stage's folder."""
    return folder / "predictions" / f"{cell.name}.{side}.jsonl"


def read_predictions(folder: Path, results: Mapping[str, Any], side: Side) -> Predictions:
    """All cells' predictions of a side, from the stage's folder and its results.json."""
    ids = {label: index for index, label in enumerate(results["labels"])}
    lines: list[dict[str, Any]] = []
    by_arm = {}
    for arm in results["arms"]:
        columns = []
        for seed in results["seeds"]:
            lines = read_jsonl(predictions_file(folder, Cell(arm, seed), side))
            columns.append([ids[line["predicted"]] for line in lines])
        by_arm[arm] = np.array(columns)
    truth = np.array([ids[line["label"]] for line in lines])
    _, groups = np.unique([line["group"] for line in lines], return_inverse=True)
    return Predictions(truth, groups, by_arm)
