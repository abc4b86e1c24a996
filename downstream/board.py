"""Fine-tuned cells on TensorBoard: each a session of the HParams page, with its scores on dev.

Those on test are no part of it: what is looked at while models are chosen is not what is reported.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ResourceError
from engine.board.session import Session, Told, begin, end
from engine.board.tags import place, values
from engine.settings import Value, backend_settings, changed

if TYPE_CHECKING:
    from downstream.cell import Cell, CellResult
    from downstream.finetune import FinetuneStage


def cell_settings(stage: "FinetuneStage", cell: "Cell") -> dict[str, Value]:
    """What a cell is compared by; under the names that pretraining stages use, too."""
    parts = {
        "adaptation": stage.adaptation,
        "optimizer": stage.optimizer,
        "schedule": stage.schedule,
    }
    found: dict[str, Value] = {"arm": cell.arm, "seed": cell.seed}
    found |= {"lr": stage.optimizer.lr, "length": stage.length, "epochs": stage.epochs}
    found["global batch"] = stage.backend.global_batch
    for name, part in parts.items():
        found |= {name: str(part.name), **changed(part, name)}
    return found | changed(stage.head, "head") | backend_settings(stage.backend)


def show_cell(
    root: Path, run: str, stage: "FinetuneStage", cell: "Cell", made: "CellResult"
) -> None:
    """Write a finished cell's curves, in place of what a start that was killed may have left.

    Args:
        root: the stage's folder of event files.
        run: what the trial is called, after the cell's name.
        stage: its settings.
        cell: which one it is.
        made: its scores, by epoch.

    Raises:
        ResourceError: the disk refused.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = root / cell.arm / f"seed-{cell.seed}"
    session = Session(f"{cell.name}, {run}", cell_settings(stage, cell))
    told = Told(folder, digest=session.digest, settings=dict(session.settings))
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as writer:
            begin(writer, session, 0)
            for epoch in made.epochs:
                numbers: dict[str, Any] = {"loss": epoch.loss, "dev": epoch.dev}
                if epoch.epoch == made.chosen_epoch:
                    numbers["chosen"] = epoch.dev
                for path, value in values(numbers):
                    tag = place("finetune", path)
                    writer.add_scalar(tag, value, epoch.epoch)
                    told.tags.add(tag)
            end(writer, len(made.epochs))
        told.write()
    except OSError as error:
        msg = f"{folder}: cannot be written ({error.strerror or error}); make room"
        raise ResourceError(msg) from error
