"""Before the first step: whether the checkpoints of a run will fit on its disk."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import OnwardError
from engine.checkpoint import commit, disk
from engine.checkpoint.fragments import bytes_of
from engine.checkpoint.save import Ranks, on_first, step_folders, together
from engine.checkpoint.store import WEIGHT
from engine.checkpoint_policy import CheckpointConfig

if TYPE_CHECKING:
    from engine.protocols import Backend

_log = logging.getLogger(__name__)


def check(
    root: Path,
    backend: "Backend",
    policy: CheckpointConfig,
    steps: int,
    ranks: Ranks,
    beside: int = 0,
) -> None:
    """Warn if the disk is too small for all that the policy keeps; every rank calls it.

    What an earlier, killed save left is deleted first, and what is kept already counts as room.
    ``beside``: how many are kept that the policy does not name.

    Raises:
        DiskError: not even one fits, and the policy is to stop on that; on all ranks.
    """
    sizes = together(ranks, lambda: bytes_here(backend))

    def look() -> None:
        with disk.disk_errors(root):
            commit.make_folder(root)
            commit.remove_leftovers(root)
        try:
            _require_one(root, sum(sizes), max(sizes))
        except disk.DiskError as error:
            if policy.on_disk_error == "stop":
                raise
            _log.warning("checkpoints will fail: %s", error)
            return
        _warn_of_all(root, sum(sizes), policy.most_at_once(steps, beside))

    on_first(ranks, look)


def bytes_here(backend: "Backend") -> int:
    """Bytes of this rank's file: its weights, and the states they have, or will after a step."""
    held = list(backend.fragments())
    weights = [fragment for fragment in held if fragment.key == WEIGHT]
    if len(weights) < len(held):
        return bytes_of(held)
    return bytes_of(weights) * (1 + len(backend.state_keys))


def _require_one(root: Path, size: int, largest: int) -> None:
    limit = disk.largest_file()
    if limit is not None and limit < largest:
        msg = (
            f"{root}: no space: {largest} bytes needed in one file, {limit} bytes allowed "
            "(ulimit -f); raise that, then run again"
        )
        raise disk.DiskError(msg)
    disk.require_space(root, size)


def _warn_of_all(root: Path, size: int, most: int) -> None:
    free = disk.free_bytes(root)
    needed = size * most - sum(map(_bytes_in, step_folders(root)))
    if free is not None and free < needed:
        _log.warning(
            "%s: no space for %d checkpoints: %d bytes needed, %d bytes free; "
            "make room, or lower checkpoint.keep, before they are all there",
            root,
            most,
            needed,
            free,
        )


def _bytes_in(folder: Path) -> int:
    """What a checkpoint takes; 0 if that cannot be told, as of a broken one."""
    try:
        return sum(file.size for file in commit.files_of(commit.read_manifest(folder), folder))
    except OnwardError:
        return 0
