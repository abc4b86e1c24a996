"""The evaluation stage: scores by arm and seed, paired differences, gain and forgetting."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from configs.errors import RecipeError
from configs.stage import Runs, StageConfig, StageContext
from data_pipeline import shards
from data_pipeline.randomness import keyed
from downstream.evaluation.language_model import (
    LanguageModelEvaluation,
    RowLosses,
    compare_losses,
    row_losses,
)
from downstream.records import digest_of_files, read_json, write_json
from engine.models import PretrainedModel

if TYPE_CHECKING:
    from downstream.evaluation.significance import Resampling
    from downstream.table import Predictions

METHOD = (
    "Paired over test groups and seeds: the test set's part of the standard error is a bootstrap "
    "over groups (rows of one file are drawn together), the seeds' part is the variance of the "
    "paired differences; Student interval with Welch-Satterthwaite degrees of freedom; p-values "
    "are Holm-corrected over the arms. The interval covers the test set and the luck of "
    "fine-tuning, not that of pretraining: each arm was pretrained once."
)


class EvaluateStage(StageConfig):
    """Compares the arms of a fine-tuning stage, and their language models."""

    RUNS: ClassVar[Runs] = "ranks"

    kind: Literal["evaluate"] = "evaluate"
    finetune: str = Field(description="location of a fine-tuning stage's folder")
    baseline: str = Field(description="the arm that the others are compared with")
    language_model: LanguageModelEvaluation | None = None
    resamples: PositiveInt = Field(4000, description="bootstrap draws")
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _baseline_is_read(self) -> Self:
        asked = self.language_model
        if asked is not None and self.baseline not in asked.arms:
            msg = f"baseline '{self.baseline}' is not one of language_model.arms {list(asked.arms)}"
            raise ValueError(msg)
        return self

    def run(self, context: StageContext) -> str:
        """Write results.json; returns its digest."""
        from engine import distributed

        losses = self._all_losses(context)
        fingerprint = self._write(context, losses) if distributed.rank() == 0 else ""
        return str(distributed.broadcast_object(fingerprint))

    def check(self, context: StageContext) -> None:
        """Models and held-out sets, and that the baseline is an arm."""
        asked = self.language_model
        if asked is not None:
            for location in asked.sets.values():
                if context.is_made(location):
                    shards.find_shards(location, context.locate)
            for location in asked.arms.values():
                model, shared = PretrainedModel(location=location), asked.packing.SHARES_ROWS
                model.check(context.is_made, context.locate)
                model.check_rows(context.is_made, context.locate, shared_rows=shared)
        if context.is_made(self.finetune):
            self._require_baseline(read_json(context.locate(self.finetune) / "results.json"))

    def _require_baseline(self, results: Mapping[str, Any]) -> None:
        if self.baseline not in results["arms"]:
            msg = f"baseline '{self.baseline}' is not one of the arms {list(results['arms'])}"
            raise RecipeError(msg)

    def _how(self, context: StageContext) -> "Resampling":
        from downstream.evaluation.significance import Resampling

        return Resampling(self.resamples, self.confidence, keyed(context.seed, context.name))

    def _all_losses(self, context: StageContext) -> dict[str, dict[str, RowLosses]]:
        """Every arm on every set, spread over the ranks."""
        from engine import distributed

        asked = self.language_model
        if asked is None:
            return {}
        pairs = [(arm, name) for arm in asked.arms for name in asked.sets]
        mine = pairs[distributed.rank() :: distributed.world()]
        found = [(arm, name, row_losses(asked, arm, name, context.locate)) for arm, name in mine]
        distributed.wait_for_all()
        losses: dict[str, dict[str, RowLosses]] = {arm: {} for arm in asked.arms}
        for share in distributed.all_gather_object(found):
            for arm, name, measured in share:
                losses[arm][name] = measured
        return losses

    def _write(self, context: StageContext, losses: dict[str, dict[str, RowLosses]]) -> str:
        from downstream.cell import PRIMARY
        from downstream.table import read_predictions

        folder = context.locate(self.finetune)
        finetuned = read_json(folder / "results.json")
        self._require_baseline(finetuned)
        how = self._how(context)
        predictions = read_predictions(folder, finetuned, "test")
        results = {
            "task": finetuned["task"],
            "baseline": self.baseline,
            "primary": PRIMARY,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "method": METHOD,
            "degenerate_rule": finetuned["degenerate_rule"],
            "seeds": finetuned["seeds"],
            "arms": _arms(finetuned, predictions),
            "differences": self._differences(predictions, how),
            "language_model": (
                compare_losses(self.language_model, losses, self.baseline, how)
                if self.language_model is not None
                else None
            ),
        }
        write_json(context.folder / "results.json", results)
        return digest_of_files([context.folder / "results.json"])

    def _differences(
        self, predictions: "Predictions", how: "Resampling"
    ) -> dict[str, dict[str, Any]]:
        from downstream.evaluation.significance import TestSet, compare

        test = TestSet(predictions.truth, predictions.groups)
        compared = compare(test, predictions.by_arm, self.baseline, how)
        return {
            metric: {arm: asdict(one) for arm, one in by_arm.items()}
            for metric, by_arm in compared.items()
        }


def _arms(finetuned: Mapping[str, Any], predictions: "Predictions") -> dict[str, Any]:
    """Each arm: its cells by seed, mean and standard deviation of every metric, F1 by class."""
    import numpy as np

    from downstream.evaluation.metrics import METRICS, class_f1

    arms: dict[str, Any] = {}
    classes = len(finetuned["labels"])
    for arm in finetuned["arms"]:
        cells = [cell for cell in finetuned["cells"] if cell["arm"] == arm]
        values = {metric: [cell["test"][metric] for cell in cells] for metric in METRICS}
        truth = predictions.truth.tolist()
        f1 = [class_f1(truth, one.tolist(), classes) for one in predictions.by_arm[arm]]
        arms[arm] = {
            "cells": [{key: cell[key] for key in cell if key != "arm"} for cell in cells],
            "mean": {metric: float(np.mean(found)) for metric, found in values.items()},
            "sd": {metric: float(np.std(found, ddof=1)) for metric, found in values.items()},
            "class_f1": dict(zip(finetuned["labels"], np.mean(f1, axis=0).tolist(), strict=True)),
        }
    return arms
