"""Saving: every rank writes its fragments, rank 0 seals and names the folder, or nobody does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from configs.errors import CheckpointError, OnwardError
from engine.checkpoint import commit
from engine.checkpoint.fragments import INDEX, RankFile, make_index, write_fragments

if TYPE_CHECKING:
    from engine.protocols import Backend, Progress

STATE = "state.json"
_STEP = "step-"
T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run, as ``engine.distributed`` gives them."""

    def rank(self) -> int:
        """This process's number."""
        ...

    def world(self) -> int:
        """How many there are."""
        ...

    def all_gather_object(self, value: Any, /) -> list[Any]:
        """Every rank's value, in the ranks' order."""
        ...

    def broadcast_object(self, value: Any, /) -> Any:
        """Rank 0's value."""
        ...


class Alone:
    """One process, without torch."""

    def rank(self) -> int:
        return 0

    def world(self) -> int:
        return 1

    def all_gather_object(self, value: Any, /) -> list[Any]:
        return [value]

    def broadcast_object(self, value: Any, /) -> Any:
        return value


def save(
    root: Path,
    progress: "Progress",
    backend: "Backend",
    state: Mapping[str, Any],
    fingerprint: str,
    ranks: Ranks | None = None,
) -> Path:
    """Save a run's state as ``root/step-N``; every rank must call it, and all succeed or all raise.

    A ``step-N`` of the same fingerprint that is intact stays as it is: steps are deterministic.

    Args:
        root: the folder of a stage's checkpoints, on a file system that all ranks share.
        progress: names the checkpoint by its finished steps.
        backend: whose fragments and extra state are saved.
        state: JSON-able, equal on every rank: cursor, hooks' states and the like.
        fingerprint: of the recipe; another one's checkpoint is never resumed from.
        ranks: who takes part; None: all of ``engine.distributed``.

    Raises:
        ResourceError: the disk failed or is full; what was saved before is untouched.
        CheckpointError: ``step-N`` belongs to another recipe, or the ranks' pieces do not join.
    """
    ranks = ranks or _all_ranks()
    final = step_folder(root, progress.step)
    temporary = _on_first(ranks, lambda: _begin(final, fingerprint))
    if temporary is None:
        return final
    written = _write_share(temporary, backend, ranks)
    record = {"step": progress.step, "backend": backend.extra_state(), "state": dict(state)}

    def finish() -> None:
        files = [_seen(temporary, file) for file in written]
        index = make_index(piece for file in files for piece in file.pieces)
        with commit.disk_errors(temporary):
            made = [commit.write_json(temporary / INDEX, index)]
            made.append(commit.write_json(temporary / STATE, record))
            facts = {"step": progress.step, "fingerprint": fingerprint, "world": ranks.world()}
            commit.seal(temporary, facts, [*(file.record for file in files), *made])
            commit.publish(temporary, final)
            commit.write_hint(root / "latest", final.name + "\n")

    try:
        _on_first(ranks, finish)
    except OnwardError:
        _discard(temporary, ranks)
        raise
    return final


def prune(root: Path, keep: int, newest: int) -> None:
    """Delete all but the ``keep`` newest checkpoints up to step ``newest``; rank 0 calls it."""
    with commit.disk_errors(root):
        for folder in [f for f in step_folders(root) if step_of(f) <= newest][keep:]:
            commit.retire(folder)


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return root / f"{_STEP}{step}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix(_STEP))


def step_folders(root: Path) -> list[Path]:
    """Everything that is named as a checkpoint, by step, the newest first."""
    if not root.is_dir():
        return []
    named = (entry for entry in root.iterdir() if entry.name.startswith(_STEP))
    return sorted(
        (entry for entry in named if entry.name.removeprefix(_STEP).isdecimal()),
        key=step_of,
        reverse=True,
    )


def _begin(final: Path, fingerprint: str) -> Path | None:
    """A fresh folder to write into, or None if this very checkpoint is there already."""
    with commit.disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        commit.remove_leftovers(final.parent)
        if final.exists() and not commit.problems_of(final):
            theirs = commit.read_manifest(final)["fingerprint"]
            if theirs == fingerprint:
                return None
            msg = f"{final}: belongs to another recipe ({theirs}); this one is {fingerprint}"
            raise CheckpointError(msg)
        return commit.aside(final)


def _write_share(temporary: Path, backend: "Backend", ranks: Ranks) -> list[RankFile]:
    """Write this rank's file; every rank learns of every file, or of the first failure."""
    path = temporary / f"rank-{ranks.rank():05d}-of-{ranks.world():05d}.safetensors"

    def write() -> RankFile:
        with commit.disk_errors(path):
            return write_fragments(path, backend.fragments())

    outcomes = ranks.all_gather_object(_attempt(write))
    failed = [outcome for outcome in outcomes if isinstance(outcome, OnwardError)]
    if not failed:
        return outcomes
    _discard(temporary, ranks)
    raise failed[0]


def _discard(temporary: Path, ranks: Ranks) -> None:
    """Give the space back; what cannot be deleted now is left for the next save to delete."""
    if ranks.rank() == 0:
        _attempt(lambda: commit.remove(temporary))


def _seen(temporary: Path, file: RankFile) -> RankFile:
    """The file, once rank 0 sees it whole; CheckpointError if hosts do not share the folder."""
    path = temporary / file.record.name
    with commit.disk_errors(path):
        commit.sync_folder(temporary)
    if not path.is_file() or path.stat().st_size != file.record.size:
        msg = (
            f"{path}: written by its rank but not seen by rank 0; "
            "put the run folder on a file system that all hosts share"
        )
        raise CheckpointError(msg)
    return file


def _on_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on rank 0 alone; its answer, or its error, is everybody's."""
    outcome = ranks.broadcast_object(_attempt(action) if ranks.rank() == 0 else None)
    if isinstance(outcome, OnwardError):
        raise outcome
    return outcome  # type: ignore[no-any-return]  # what the action returned, after the broadcast


def _attempt(action: Callable[[], T]) -> T | OnwardError:
    """An error as a value: a rank that raised alone would leave the others waiting."""
    try:
        return action()
    except OnwardError as error:
        return error
    except Exception as error:  # whatever it is, the other ranks must hear of it
        return CheckpointError(f"{type(error).__name__}: {error}")


def _all_ranks() -> Ranks:
    from engine import distributed

    return distributed
