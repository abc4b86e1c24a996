"""Saving: every rank writes its fragments, rank 0 seals and names the folder, or nobody does."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from configs.errors import Cause, CheckpointError, OnwardError
from engine import faults
from engine.checkpoint import commit, disk
from engine.checkpoint.fragments import INDEX, RankFile, make_index, write_fragments

if TYPE_CHECKING:
    from engine.protocols import Fragment, Progress

STATE = "state.json"
DUE = "due"
"""In a checkpoint's state: False where it was saved because the run was to stop, and no more."""
_log = logging.getLogger(__name__)
_STEP = "step-"
_SHARE = "put the run folder on a file system that all hosts share"
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


class Source(Protocol):
    """Whose state is saved: a backend, or a copy of what one held."""

    def fragments(self) -> "Iterable[Fragment]":
        """As ``Backend.fragments``; gone through once."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """As ``Backend.extra_state``."""
        ...


def save(
    root: Path,
    progress: "Progress",
    source: Source,
    state: Mapping[str, Any],
    fingerprint: str,
    ranks: Ranks | None = None,
) -> Path:
    """Save a run's state as ``root/step-N``; every rank must call it, and all succeed or all raise.

    A ``step-N`` of the same fingerprint that is intact stays as it is: steps are deterministic.

    Args:
        root: the folder of a stage's checkpoints, on a file system that all ranks share.
        progress: names the checkpoint by its finished steps.
        source: whose fragments and extra state are saved.
        state: JSON-able, equal on every rank: cursor, hooks' states and the like.
        fingerprint: of the recipe; another one's checkpoint is never resumed from.
        ranks: who takes part; None: all of ``engine.distributed``.

    Raises:
        DiskError: the disk failed or is full; what was saved before is untouched.
        CheckpointError: ``step-N`` belongs to another recipe, or the ranks' pieces do not join.
    """
    ranks = ranks or _all_ranks()
    step = progress.step
    final = step_folder(root, step)
    if _is_there(final, step, fingerprint, ranks):
        return final
    temporary = on_first(ranks, lambda: _begin(final))
    written = _write_share(temporary, source, step, ranks)

    def finish() -> None:
        files = [_seen(temporary, file) for file in written]
        index = make_index(piece for file in files for piece in file.pieces)
        record = {"step": step, "backend": source.extra_state(), "state": dict(state)}
        facts = {"step": step, "fingerprint": fingerprint, "world": ranks.world()}
        with disk.disk_errors(temporary):
            made = [commit.write_json(temporary / INDEX, index)]
            made.append(commit.write_json(temporary / STATE, record))
            faults.reached("checkpoint.manifest", step=step)
            records = [*(file.record for file in files), *made]
            commit.seal(temporary, final.name, facts, records)
            faults.reached("checkpoint.rename", step=step)
            commit.publish(temporary, final)
            faults.reached("checkpoint.renamed", step=step)
        _write_hint(root, final.name)

    try:
        on_first(ranks, finish)
    except OnwardError:
        _discard(temporary, ranks)
        raise
    return final


def prune(
    root: Path,
    keep: int,
    newest: int,
    keep_every: int | None = None,
    in_doubt: Sequence[int] = (),
    needs: Callable[[int], int | None] = lambda _: None,
) -> None:
    """Delete old checkpoints up to step ``newest``, which was just saved; rank 0 calls it.

    What was saved for a stop alone goes when there is a newer one, and counts for nothing: what is
    there for a rollback shall not depend on when a run was stopped. Of the others the ``keep``
    newest sound ones stay, and those of steps that ``keep_every`` divides, and the
    newest sound one up to each step ``in_doubt``, for a rollback; of each that stays also the one
    of the step that it ``needs``: a run that resumes from it may ask for that. A folder that is not
    sound (a file is missing or of another size) does not count. Nothing is deleted unless
    ``newest`` itself is sound.

    Raises:
        DiskError: the disk failed; what was half deleted no longer bears a checkpoint's name.
    """
    kept = 0
    with disk.disk_errors(root):
        if not _is_sound(step_folder(root, newest)):
            return
        present = [f for f in step_folders(root) if step_of(f) <= newest]
        folders = [f for f in present if is_due(f)]
        spared = {
            next((f for f in folders if step_of(f) <= step and _is_sound(f)), None)
            for step in in_doubt
        }
        old = [f for f in present if f not in folders and step_of(f) < newest]
        for folder in folders:
            if folder in spared:
                kept += 1
            elif kept < keep:
                kept += _is_sound(folder)
            elif keep_every is None or step_of(folder) % keep_every:
                old.append(folder)
        needed = {needs(step_of(folder)) for folder in present if folder not in old}
        for folder in old:
            if step_of(folder) not in needed:
                hidden = commit.hide(folder)
                faults.reached("checkpoint.prune", step=newest)
                commit.remove(hidden)


def is_due(folder: Path) -> bool:
    """Whether a run that nobody stops saves there, too; True where that cannot be told."""
    try:
        state = json.loads((folder / STATE).read_bytes())["state"]
        return bool(state.get(DUE, True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def _is_sound(folder: Path) -> bool:
    return not commit.problems_of(folder, commit.UNREAD)


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


def _is_there(final: Path, step: int, fingerprint: str, ranks: Ranks) -> bool:
    """Whether this very checkpoint is there and intact; the ranks split the reading."""

    def look() -> bool:
        with disk.disk_errors(final):
            faults.reached("checkpoint.begin", step=step)
            if not final.exists():
                return False
            share = slice(ranks.rank(), None, ranks.world())
            return not commit.problems_of(final, share)

    if not all(together(ranks, look)):
        return False

    def accept() -> None:
        with disk.disk_errors(final):
            commit.remove_leftovers(final.parent)
        theirs = commit.read_manifest(final)["fingerprint"]
        if theirs != fingerprint:
            msg = f"{final}: belongs to another recipe ({theirs}); this one is {fingerprint}"
            raise CheckpointError(msg)

    on_first(ranks, accept)
    return True


def _begin(final: Path) -> Path:
    """A fresh folder to write into."""
    with disk.disk_errors(final):
        commit.make_folder(final.parent)
        commit.remove_leftovers(final.parent)
        return commit.aside(final)


def _write_share(temporary: Path, source: Source, step: int, ranks: Ranks) -> list[RankFile]:
    """Write this rank's file; every rank learns of every file, or of the first failure."""
    path = temporary / f"rank-{ranks.rank():05d}-of-{ranks.world():05d}.safetensors"

    def write() -> RankFile:
        if not disk.appears(temporary.is_dir):
            msg = f"{temporary}: made by rank 0 but not seen by rank {ranks.rank()}; {_SHARE}"
            raise CheckpointError(msg)
        written = write_fragments(path, source.fragments(), step)
        with disk.disk_errors(path):
            faults.reached("checkpoint.gather", step=step)
        return written

    try:
        return together(ranks, write)
    except OnwardError:
        _discard(temporary, ranks)
        raise


def _discard(temporary: Path, ranks: Ranks) -> None:
    """Give the space back; what cannot be deleted now is left for the next save to delete."""
    if ranks.rank() == 0:
        _attempt(lambda: commit.remove(temporary))


def _seen(temporary: Path, file: RankFile) -> RankFile:
    """The file, once rank 0 sees it whole; CheckpointError if hosts do not share the folder."""
    path = temporary / file.record.name

    def is_whole() -> bool:
        commit.sync_folder(temporary)
        return path.is_file() and path.stat().st_size == file.record.size

    with disk.disk_errors(path):
        if disk.appears(is_whole):
            return file
    msg = f"{path}: written by its rank but not seen by rank 0; {_SHARE}"
    raise CheckpointError(msg)


def _write_hint(root: Path, name: str) -> None:
    """The checkpoint is there already; that its hint is not harms nobody."""
    try:
        commit.write_hint(root / "latest", name + "\n")
    except OSError as error:
        _log.warning("%s: not written: %s", root / "latest", error.strerror)


def on_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on rank 0 alone; its answer, or its error, is everybody's."""
    outcome = ranks.broadcast_object(_attempt(action) if ranks.rank() == 0 else None)
    if isinstance(outcome, OnwardError):
        raise outcome
    return outcome  # type: ignore[no-any-return]  # what the action returned, after the broadcast


def together(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """Each rank does its share; everybody's answers, or the first rank's error on all of them."""
    outcomes = ranks.all_gather_object(_attempt(action))
    for outcome in outcomes:
        if isinstance(outcome, OnwardError):
            raise outcome
    return outcomes


def _attempt(action: Callable[[], T]) -> T | OnwardError:
    """An error as a value: a rank that raised alone would leave the others waiting."""
    try:
        return action()
    except OnwardError as error:
        return error
    except Exception as error:  # whatever it is, the other ranks must hear of it
        return CheckpointError(f"{type(error).__name__}: {error}", Cause("unforeseen"))


def _all_ranks() -> Ranks:
    from engine import distributed

    return distributed
