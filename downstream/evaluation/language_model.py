"""Loss of language models on held-out text, row by row, with the same masks for every model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PositiveInt, model_validator

from configs.errors import DataError, NumericalError
from configs.schema import Config
from data_pipeline.packing import BestFitPacking, Packing
from data_pipeline.tokenization import tokenizer_sha256
from engine.models import PretrainedModel
from engine.objectives import ObjectiveConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_pipeline.rows import Rows
    from downstream.evaluation.significance import Resampling
    from engine.learner import Learner

MASK_SEED = 0
ROWS_TOGETHER = 16


class LanguageModelEvaluation(Config):
    """Which models are read which held-out text."""

    arms: dict[str, str] = Field(min_length=1, description="name -> location of a model")
    sets: dict[str, str] = Field(min_length=1, description="name -> location of a shard folder")
    length: int = Field(128, ge=4, description="tokens a row, special ones included")
    rows: PositiveInt = Field(256, description="rows read from each set, at most")
    packing: Packing = BestFitPacking()
    objective: ObjectiveConfig
    gain_on: str = Field("domain", description="the set where a lower loss is what was wanted")
    forgetting_on: str = Field("general", description="the set where a higher loss is forgetting")

    @model_validator(mode="after")
    def _sets_exist(self) -> Self:
        for key in ("gain_on", "forgetting_on"):
            if getattr(self, key) not in self.sets:
                msg = f"{key} '{getattr(self, key)}' is not one of the sets {list(self.sets)}"
                raise ValueError(msg)
        if self.packing.name == "sentence_pairs" or self.objective.needs_pairs:
            msg = (
                "sentence pairs: the pair head is no part of an exported model; "
                "evaluate masked tokens alone, with another packing"
            )
            raise ValueError(msg)
        return self

    def locations(self) -> list[str]:
        """All that it reads."""
        return [*self.arms.values(), *self.sets.values()]


@dataclass(frozen=True, slots=True)
class RowLosses:
    """One model on one set.

    Attributes:
        sums: fp64 [rows]: summed loss of each row's targets.
        counts: fp64 [rows]: targets of each row.
        tokens: real tokens read.
    """

    sums: "NDArray[np.float64]"
    counts: "NDArray[np.float64]"
    tokens: int

    @property
    def mean(self) -> float:
        """Loss a target, in nats."""
        return float(self.sums.sum() / self.counts.sum())


def row_losses(
    config: LanguageModelEvaluation, arm: str, name: str, locate: Callable[[str], Path]
) -> RowLosses:
    """Losses of an arm on a set, in fp32, masks keyed by the rows alone.

    Raises:
        DataError: the model's tokenizer is not the one that made the set.
        NumericalError: the loss is not finite.
    """
    from data_pipeline.shards import find_shards
    from data_pipeline.streaming import FixedRows
    from engine.isolation import require_positions
    from engine.learner import Learner

    folder = find_shards(config.sets[name], locate)
    rows = FixedRows.open(folder, config.length, config.rows, config.packing)
    record = rows.tokenizer
    objective = config.objective.build(record.special, record.vocabulary_size)
    model = PretrainedModel(location=config.arms[arm])
    shared = config.packing.SHARES_ROWS
    loaded = model.build(locate, objective.architecture, MASK_SEED, shared_rows=shared)
    own = tokenizer_sha256(loaded.tokenizer.backend_tokenizer)
    if own != record.sha256:
        msg = (
            f"arm '{arm}': its tokenizer has sha256 {own[:16]}, set '{name}' was made with "
            f"{record.sha256[:16]}; evaluate it on a set prepared with its own tokenizer"
        )
        raise DataError(msg)
    backbone = loaded.model
    require_positions(backbone, config.length, f"language model of arm '{arm}'")
    learner = Learner(backbone, objective)
    losses = _losses(learner, rows.examples(0, len(rows)))
    if not isfinite(losses.mean):
        msg = f"language-model loss of arm '{arm}' on set '{name}' is {losses.mean}"
        raise NumericalError(msg)
    return losses


def _losses(learner: "Learner", rows: "Rows") -> RowLosses:
    import numpy as np

    from engine import distributed
    from engine.backends.passes import score_fixed

    device = distributed.device()
    learner.to(device)
    sums, counts, tokens = [], [], 0
    for start in range(0, len(rows), ROWS_TOGETHER):
        part = rows[start : start + ROWS_TOGETHER]
        # Each row as a source of its own, so that the loss comes out row by row; masks stay the
        # same, as the source's number is no part of what they are keyed by.
        batch = part.with_sources(np.arange(len(part)))
        made = learner.objective.collate(batch, MASK_SEED, len(batch))
        loss = score_fixed(learner, made, device)
        sums.append(loss.by_source.double().cpu().numpy())
        counts.append(np.array(made.source_counts, np.float64))
        tokens += made.tokens
    return RowLosses(np.concatenate(sums), np.concatenate(counts), tokens)


def compare_losses(
    config: LanguageModelEvaluation,
    losses: Mapping[str, Mapping[str, RowLosses]],
    baseline: str,
    how: "Resampling",
) -> dict[str, Any]:
    """Losses of every arm on every set, and changes to the baseline with intervals over rows.

    Gain is the fall of the loss on ``gain_on``, forgetting its rise on ``forgetting_on``.
    """
    sets: dict[str, Any] = {}
    for name in config.sets:
        base = losses[baseline][name]
        sets[name] = {
            "rows": len(base.sums),
            "targets": int(base.counts.sum()),
            "tokens": base.tokens,
            "arms": {arm: _against(losses[arm][name], base, how) for arm in config.arms},
        }
    gain, forgetting = sets[config.gain_on]["arms"], sets[config.forgetting_on]["arms"]
    return {
        "objective": config.objective.name,
        "gain_on": config.gain_on,
        "forgetting_on": config.forgetting_on,
        "sets": sets,
        "arms": {
            arm: {"gain": -gain[arm]["change"], "forgetting": forgetting[arm]["change"]}
            for arm in config.arms
        },
    }


def _against(arm: RowLosses, base: RowLosses, how: "Resampling") -> dict[str, float]:
    from downstream.evaluation.significance import paired_ratio_interval

    low, high = paired_ratio_interval(arm.sums - base.sums, base.counts, how)
    return {
        "loss": arm.mean,
        "perplexity": exp(min(arm.mean, 700.0)),
        "change": arm.mean - base.mean,
        "low": low,
        "high": high,
    }
