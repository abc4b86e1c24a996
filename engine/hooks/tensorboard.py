"""TensorBoard event files of the same numbers that the JSON lines hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.disk import disk_errors
from engine.protocols import Backend, Hook, Progress


class TensorBoardHook(Hook):
    """A sink for the other hooks; on a resume, events after the checkpoint are purged."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Open the file on rank 0."""
        if backend.rank == 0 and self._writer is None:
            # A run that starts anew voids what one before it wrote and lost.
            purge = progress.step + 1 if progress.step else 0
            from torch.utils.tensorboard import SummaryWriter

            with disk_errors(self._folder):
                self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Every number under its path: ``train/sources/domain/loss``; nulls are left out."""
        for tag, value in _flat(kind, numbers):
            self._writer.add_scalar(tag, value, step)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Close the file."""
        del backend, progress
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but what belongs to the checkpoint is brought to the file."""
        if self._writer is not None:
            self._writer.flush()
        return {}


def _flat(prefix: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        tag = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _flat(tag, value)
        elif value is not None:
            yield tag, float(value)
