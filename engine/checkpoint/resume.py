"""Resuming: the newest checkpoint that verifies, whatever lies beside it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.errors import CheckpointError
from engine.checkpoint import commit, disk
from engine.checkpoint.fragments import INDEX
from engine.checkpoint.save import STATE, Alone, Ranks, step_folders, step_of
from engine.checkpoint.store import FragmentStore
from engine.protocols import Progress

if TYPE_CHECKING:
    from engine.protocols import Backend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        folder: where it lies.
        step: finished optimizer steps.
        fingerprint: of the recipe that made it.
        world: ranks that wrote it; any number may read it.
        state: what was given to ``save``.
        backend_state: the backend's ``extra_state``.
    """

    folder: Path
    step: int
    fingerprint: str
    world: int
    state: Mapping[str, Any]
    backend_state: Mapping[str, Any]

    def store(self) -> FragmentStore:
        """Its weights and optimizer states."""
        return FragmentStore(self.folder)

    def restore(self, backend: "Backend") -> Progress:
        """Fill a freshly built backend; the next step is the one after this checkpoint's.

        Raises:
            CheckpointError: parameters, shapes or optimizer states are not those of this run.
        """
        store = self.store()
        _require_same_model(store, backend)
        # Skipped steps first: a run that has only skipped has no optimizer state to fill.
        backend.load_extra_state(self.backend_state)
        backend.load_fragments(store.read, store.state_keys, self.step)
        return Progress(self.step)


Verify = Literal["full", "sizes"]


def newest(
    root: Path,
    fingerprint: str,
    ranks: Ranks | None = None,
    verify: Verify = "full",
    most: int | None = None,
) -> Checkpoint | None:
    """The newest complete and intact checkpoint in ``root``; None if there is none at all.

    Broken ones are named in a warning and passed over. With ``ranks`` (``engine.distributed``, say)
    every rank must call it: they split the reading, and find the same one or raise alike.

    Args:
        root: the folder of a stage's checkpoints.
        fingerprint: of the recipe.
        ranks: who takes part; None: this process alone.
        verify: ``full`` reads every byte, as whoever trains on it must. ``sizes`` leaves out the
            weights' content: enough to look at the state, which is read.
        most: later steps than that are not looked at; None: all are.

    Raises:
        CheckpointError: only broken ones are there, or it belongs to another recipe.
    """
    ranks = ranks or Alone()
    folders = [
        folder
        for folder in ranks.broadcast_object(step_folders(root))
        if most is None or step_of(folder) <= most
    ]
    broken: list[str] = []
    for folder in folders:
        problems = _problems(folder, ranks, verify)
        if not problems:
            return _of_recipe(_read(folder), fingerprint)
        broken += problems
        if ranks.rank() == 0:
            _log.warning("checkpoint passed over: %s", "; ".join(problems))
    if not broken:
        return None
    msg = (
        f"{root}: no intact checkpoint among {len(folders)}:\n  " + "\n  ".join(broken) + "\n"
        "restore one from a backup, or remove the folder (--redo the stage) to start over"
    )
    raise CheckpointError(msg)


def open_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint, verified whole; CheckpointError naming every file at fault."""
    if problems := commit.problems_of(folder):
        raise CheckpointError("\n".join(problems))
    return _read(folder)


def _problems(folder: Path, ranks: Ranks, verify: Verify) -> list[str]:
    """All ranks' findings. Each looks at all names and sizes, and reads its share."""
    seen = ranks.broadcast_object(commit.problems_of(folder, commit.UNREAD))
    if seen:
        return list(seen)
    # Rank 0 sees it whole; another host may need a moment.
    disk.appears(lambda: not commit.problems_of(folder, commit.UNREAD))
    found = ranks.all_gather_object(_content_problems(folder, ranks, verify))
    return list(dict.fromkeys(problem for problems in found for problem in problems))


def _content_problems(folder: Path, ranks: Ranks, verify: Verify) -> list[str]:
    if verify == "full":
        return commit.problems_of(folder, slice(ranks.rank(), None, ranks.world()))
    if problems := commit.problems_of(folder, commit.UNREAD):
        return problems
    files = commit.files_of(commit.read_manifest(folder), folder)
    small = [file for file in files if file.name in {INDEX, STATE}]
    return [found for file in small if (found := commit.content_problem(folder, file))]


def _read(folder: Path) -> Checkpoint:
    manifest = commit.read_manifest(folder)
    try:
        record = json.loads((folder / STATE).read_bytes())
        facts = manifest["step"], manifest["fingerprint"], manifest["world"]
        states = record["state"], record["backend"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{folder}: its {commit.MANIFEST} or {STATE} is not a checkpoint's: {error!r}"
        raise CheckpointError(msg) from error
    if not all(isinstance(state, dict) for state in states):
        msg = f"{folder / STATE}: not the state of a checkpoint"
        raise CheckpointError(msg)
    return Checkpoint(folder, *facts, *states)


def _require_same_model(store: FragmentStore, backend: "Backend") -> None:
    """A range of another shape would read without an error, and be nonsense."""
    trained = {name for name, p in backend.learner.named_parameters() if p.requires_grad}
    if strangers := sorted(trained ^ set(store.names)):
        msg = (
            f"{store.folder}: made with another model or adaptation: {strangers[0]} "
            f"({len(strangers)} such) is only in one of the two"
        )
        raise CheckpointError(msg)
    for piece in backend.fragments():
        if tuple(piece.shape) != store.shape(piece.name):
            msg = (
                f"{store.folder}: made with another model: {piece.name} is "
                f"{store.shape(piece.name)} there and {tuple(piece.shape)} here"
            )
            raise CheckpointError(msg)


def _of_recipe(found: Checkpoint, fingerprint: str) -> Checkpoint:
    if found.fingerprint != fingerprint:
        msg = (
            f"{found.folder}: made by another recipe: its fingerprint is {found.fingerprint}, this "
            f"recipe's is {fingerprint}; give the old recipe, another output folder, or --redo the "
            "stage"
        )
        raise CheckpointError(msg)
    return found
