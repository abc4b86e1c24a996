"""The table of fine-tuning: arms by seeds, its files, and what its cells share."""

import gc
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.deepspeed_json import precision, read_deepspeed
from data_pipeline.example import Example
from data_pipeline.randomness import keyed
from downstream.board import show_cell
from downstream.cell import DEGENERATE_RULE, Cell, CellResult, Recipe, run_cell
from downstream.records import (
    digest_of_files,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from downstream.tasks.rows import Side, TaskData, task_fingerprint
from engine.models import PretrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from configs.stage import StageContext
    from downstream.finetune import FinetuneStage
    from downstream.objectives.classification import Classification
    from engine.protocols import Backend

PREDICTED: tuple[Side, ...] = ("dev", "test")
log = logging.getLogger(__name__)


class Table:
    """Arms by seeds: the files of the stage, and what the cells share."""

    def __init__(self, config: "FinetuneStage", context: "StageContext") -> None:
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
        backbone = self._config.adaptation.build(cell.seed).apply(loaded.model)
        require_positions(backbone, self._config.length, f"fine-tuning arm '{cell.arm}'")
        kind = precision(read_deepspeed(self._config.backend.config))
        quicken(backbone, distributed.device(), kind, self._config.length)
        head, classes = self._config.head, len(self._data.labels)
        objective = Classification(head, classes, padding_id(loaded.tokenizer), cell.seed)
        learner = Learner(backbone, objective)
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
        stage = self._context.folder
        run = f"{self._context.name}, {stage.parent.name}"
        show_cell(stage / "tensorboard", run, self._config, cell, result)
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
