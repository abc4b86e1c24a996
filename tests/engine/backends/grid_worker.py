"""Ranks of the grid: every architecture at every stage, through checkpoints on the disk."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from engine import distributed
from engine.adaptation import FullTraining
from engine.backends import DeepSpeedZero
from engine.checkpoint import export_model, newest, open_checkpoint, save
from engine.optimization import AdamW
from engine.protocols import Progress
from tests.engine import tiny
from tests.engine.backends.zero_cases import PEAK, curve, settings

SAVED_AT = 2
STOP = 4
NOISE = {
    "modernbert_tiny": ("embedding_dropout", "mlp_dropout"),
    "llama_tiny": ("attention_dropout",),
    "mixtral_tiny": ("attention_dropout",),
}
PROBE = np.random.default_rng(0).integers(5, tiny.VOCABULARY, (2, tiny.LENGTH))


def learner(shape: str) -> Any:
    """A tiny model with dropout."""
    noisy = dict.fromkeys(NOISE.get(shape, tiny.dropouts(shape)), 0.1)
    return tiny.learner(Path(tempfile.mkdtemp()), shape, **noisy)


def backend_of(shape: str, stage: int) -> Any:
    """The same micro-batches of 4 rows on any number of ranks, so the same dropout, too."""
    values = settings(stage, micro=4)
    return DeepSpeedZero(config=values).build(learner(shape), AdamW(lr=PEAK), (), seed=0)


def root_of(folder: str, world: int, shape: str, stage: int) -> Path:
    """Where that run's checkpoints lie."""
    return Path(folder) / f"{world}-{shape}-{stage}"


def grid(folder: str, shapes: list[str], other: int | None, name: str) -> None:
    """Train, save and go on; resume; take over what ``other`` ranks saved at the next stage."""
    answers: dict[str, Any] = {}
    with distributed.joined():
        for shape in shapes:
            for stage in range(4):
                answers[f"{shape} {stage}"] = _cell(folder, shape, stage, other)
        if distributed.rank() == 0:
            (Path(folder) / name).write_text(json.dumps(answers))


def _cell(folder: str, shape: str, stage: int, other: int | None) -> dict[str, Any]:
    world = distributed.world()
    answer: dict[str, Any] = {}
    backend = backend_of(shape, stage)
    root = root_of(folder, world, shape, stage)
    if other != 2:
        curve(backend, 0, SAVED_AT)
        save(root, Progress(SAVED_AT), backend, {}, "grid")
        answer["on"] = curve(backend, SAVED_AT, STOP)
        backend.close()
        backend = backend_of(shape, stage)
        answer["resumed"] = resumed(backend, root)
    if other is not None:
        theirs = root_of(folder, other, shape, (stage + 1) % 4)
        answer["taken over"] = resumed(backend, theirs)
    backend.close()
    # It costs every start 11 to 17 seconds, and nothing here needs it.
    assert "transformers.trainer" not in sys.modules
    if world == 2 and distributed.rank() == 0:
        answer["ties"] = exported(root, shape)
    return answer


def resumed(backend: Any, root: Path) -> list[list[float]]:
    """The curve from the newest checkpoint there."""
    found = newest(root, "grid")
    assert found is not None
    assert found.restore(backend).step == SAVED_AT
    return curve(backend, SAVED_AT, STOP)


def exported(root: Path, shape: str) -> list[list[str]]:
    """The checkpoint as a model that transformers alone loads; its tied parameters."""
    store = open_checkpoint(root / f"step-{SAVED_AT}").store()
    words = Path(tempfile.mkdtemp())
    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer_folder(words / "tokenizer"))
    made = export_model(
        store, learner(shape), FullTraining(), tokenizer, root / "export", {}, PROBE
    )
    return [list(group) for group in made.verification.ties]
