"""Going back to an earlier checkpoint in mid-run, and doing away with the later ones."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import NumericalError
from engine.leaving import GoBack

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint

_log = logging.getLogger(__name__)


def step_back(root: Path, fingerprint: str, asked: GoBack) -> "Checkpoint":
    """The newest intact checkpoint that is old enough; every rank calls it.

    Later ones are deleted, the newest first: their steps will be other ones. A run that is killed
    in between resumes from the newest that is left, comes to the same steps, and goes back again.

    Raises:
        NumericalError: there is none.
        CheckpointError: there are broken ones alone.
    """
    from engine import distributed, faults
    from engine.checkpoint import newest
    from engine.checkpoint.save import DUE

    found = newest(root, fingerprint, distributed, most=asked.most)
    while found is not None and not found.state.get(DUE, True):
        # Saved for a stop: a run that nobody stopped would not find it.
        found = newest(root, fingerprint, distributed, most=found.step - 1)
    if found is None:
        msg = f"{asked}; {asked.missing()}"
        raise NumericalError(msg)
    faults.reached("rollback", step=asked.last)
    distributed.on_first(lambda: discard_after(root, found.step))
    faults.reached("rolled_back", step=asked.last)
    if distributed.rank() == 0:
        _log.warning("%s; %s", asked, asked.onward(found.step))
    return found


def discard_after(root: Path, step: int) -> None:
    """Delete the checkpoints of later steps, the newest first; one process calls it."""
    from engine.checkpoint import commit
    from engine.checkpoint.disk import disk_errors
    from engine.checkpoint.save import step_folder, step_folders, step_of

    with disk_errors(root):
        for folder in step_folders(root):
            if step_of(folder) > step:
                commit.retire(folder)
        commit.write_hint(root / "latest", step_folder(root, step).name + "\n")
