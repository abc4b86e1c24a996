"""What penalties take from earlier stages: importances of weights, and teachers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, DataError, RecipeError
from data_pipeline.tokenization import tokenizer_sha256
from engine.models import PretrainedModel
from engine.penalties import PenaltyConfig
from engine.penalties.ewc import FISHER, HEADS

if TYPE_CHECKING:
    from torch import nn

    from engine.checkpoint.store import FragmentStore
    from engine.protocols import Architecture

Locate = Callable[[str], Path]


def check_earlier(
    penalties: Iterable[PenaltyConfig],
    is_made: Callable[[str], bool],
    locate: Locate,
    *,
    shared_rows: bool,
) -> None:
    """Folders alone, nothing loaded; what has not been made yet is passed over.

    Raises:
        DataError: a folder holds no importances, or no model.
        RecipeError: a teacher cannot read such rows.
    """
    for penalty in penalties:
        for location in penalty.importances:
            if is_made(location):
                newest_importances(locate(location), location)
        for location in penalty.teachers:
            model = PretrainedModel(location=location)
            model.check(is_made, locate)
            model.check_rows(is_made, locate, shared_rows=shared_rows)


def open_importances(location: str, locate: Locate) -> "FragmentStore":
    """What a stage ``fisher`` has saved; CheckpointError if it is damaged."""
    from engine.checkpoint import open_checkpoint

    return open_checkpoint(newest_importances(locate(location), location)).store()


def require_importances(store: "FragmentStore", learner: "nn.Module") -> None:
    """CheckpointError unless every trained weight has one; a head that is new may have none."""
    trained = {n: tuple(p.shape) for n, p in learner.named_parameters() if p.requires_grad}
    for name, shape in trained.items():
        if not store.has(name, FISHER):
            if name.startswith(HEADS):
                continue
            msg = (
                f"penalty ewc: {store.folder} has no importance of '{name}'; its stage must have "
                "trained the same parameters of the same model (an adaptation adds others)"
            )
            raise CheckpointError(msg)
        if tuple(store.shape(name)) != shape:
            msg = (
                f"penalty ewc: {store.folder}: '{name}' has shape {tuple(store.shape(name))}, in "
                f"this model {shape}; the importances are of another model"
            )
            raise CheckpointError(msg)


def newest_importances(stage: Path, location: str) -> Path:
    """The checkpoint of importances in a stage's folder; DataError if there is none."""
    from engine.checkpoint.save import step_folders

    found = step_folders(stage / FISHER) if (stage / FISHER).is_dir() else []
    if not found:
        msg = (
            f"{location}: no importances at {stage / FISHER}; expected the folder of a finished "
            "stage of kind fisher"
        )
        raise DataError(msg)
    return found[0]


def load_teacher(
    location: str,
    architecture: "Architecture",
    locate: Locate,
    tokenizer: str,
    *,
    shared_rows: bool,
) -> "nn.Module":
    """A model whose predictions are learned from; ``tokenizer``: sha256 of the shards'.

    Raises:
        RecipeError: it has no head of its own.
        DataError: it has another tokenizer.
    """
    model = PretrainedModel(location=location)
    loaded = model.build(locate, architecture, 0, shared_rows=shared_rows)
    if loaded.fresh:
        msg = (
            f"penalty distillation: teacher {location} has no weights for its head "
            f"({', '.join(loaded.fresh)}): there is nothing to learn from it"
        )
        raise RecipeError(msg)
    _require_same_tokenizer(location, loaded.tokenizer, tokenizer)
    found: nn.Module = loaded.model
    return found


def _require_same_tokenizer(teacher: str, tokenizer: Any, wanted: str) -> None:
    """DataError if it is another one: of the same size it would speak of other words, unnoticed."""
    found = tokenizer_sha256(tokenizer.backend_tokenizer)
    if found != wanted:
        msg = (
            f"penalty distillation: teacher {teacher} has a tokenizer with sha256 {found[:16]}, "
            f"the shards were made with {wanted[:16]}; name the model that this one began as"
        )
        raise DataError(msg)
