"""A pretraining stage's checkpoint as a model folder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from configs.errors import RecipeError
from configs.stage import StageContext
from data_pipeline.streaming import Cursor
from engine.assemble import build_learner, build_objective
from engine.choice import read_choice
from engine.pretraining import PretrainStage


def export_all(stage: PretrainStage, context: StageContext, step: int) -> str:
    """``export/``, and ``export-average/`` if there is an average; returns a digest of both."""
    trained = export_step(stage, context, step)
    if stage.averaging is None:
        return trained
    averaged = export_step(stage, context, step, weights="average")
    return hashlib.sha256(f"{trained} {averaged}".encode()).hexdigest()


Weights = Literal["trained", "average"]
_EXPORTS: dict[Weights, str] = {"trained": "export", "average": "export-average"}


def export_step(
    stage: PretrainStage,
    context: StageContext,
    step: int,
    folder: Path | None = None,
    weights: Weights = "trained",
) -> str:
    """The checkpoint after ``step`` as a model folder, on this process alone; returns its digest.

    ``folder`` None: the stage's own ``export/``, or ``export-average/``.

    Raises:
        RecipeError: the average is asked for, and the stage keeps none.
        CheckpointError: no such checkpoint, or it is damaged.
    """
    from engine.checkpoint import export_model, open_checkpoint
    from engine.checkpoint.save import step_folder
    from engine.frozen import frozen_digest, require_same_frozen

    checkpoint = open_checkpoint(step_folder(context.folder / "checkpoints", step))
    store = checkpoint.store()
    cursor = Cursor.from_json(checkpoint.state["cursor"])
    stream = stage.open_stream(context).following(cursor)
    objective = build_objective(stage, context, stream)
    learner, adaptation, tokenizer = build_learner(stage, context, objective)
    require_same_frozen(checkpoint.state, frozen_digest(learner), checkpoint.folder)
    lineage = {
        "stage": context.name,
        "key": context.key,
        "step": step,
        "weights": weights,
        "model": stage.model.model_dump(mode="json"),
        "inputs": {name: artifact.fingerprint for name, artifact in context.inputs.items()},
        "data": stream.fingerprint,
    }
    if origin := checkpoint.state["hooks"].get("origin"):
        lineage["imported"] = origin
    if (chosen := read_choice(context.folder)) and chosen["step"] == step:
        lineage["choice"] = chosen
    probe = stream.examples(0, 2).tokens.astype(np.int32)
    made = export_model(
        store,
        learner,
        adaptation,
        tokenizer,
        folder or context.folder / _EXPORTS[weights],
        lineage,
        probe,
        _weights_key(stage, weights, store.state_keys),
    )
    return made.fingerprint


def _weights_key(stage: PretrainStage, weights: Weights, there: Sequence[str]) -> str:
    """Under which key the weights stand in a checkpoint that has the states ``there``."""
    from engine.checkpoint.store import WEIGHT

    if weights == "trained":
        return WEIGHT
    if stage.averaging is None:
        msg = "the stage keeps no average of its weights: give it 'averaging', or ask for 'trained'"
        raise RecipeError(msg)
    # Before the first step that is taken there is no optimizer state: the average is the weights.
    if not there:
        return WEIGHT
    return stage.averaging.KEYS[0]
