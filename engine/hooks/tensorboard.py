"""TensorBoard event files of the same numbers that the JSON lines hold."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.disk import disk_errors
from engine.protocols import Backend, Hook, Progress

_log = logging.getLogger(__name__)


class TensorBoardHook(Hook):
    """A sink for the other hooks; on a resume, events after the checkpoint are purged.

    The numbers are in other files, too: where the disk refuses, some are left out here.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._is_lossy = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Open the file on rank 0."""
        if backend.rank == 0 and self._writer is None:
            # A run that starts anew voids what one before it wrote and lost.
            with disk_errors(self._folder):
                self._open(progress.step + 1 if progress.step else 0)

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Every number under its path: ``train/sources/domain/loss``; nulls are left out."""
        try:
            self._reopen()
            for tag, value in _flat(kind, numbers):
                self._writer.add_scalar(tag, value, step)
        except OSError as error:
            self._lose(error)

    def write_text(self, kind: str, step: int, text: str) -> None:
        """A page of Markdown under the name of its kind."""
        try:
            self._reopen()
            self._writer.add_text(kind, text, step)
        except OSError as error:
            self._lose(error)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Close the file."""
        del backend, progress
        self._try("close")
        self._writer = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but what belongs to the checkpoint is brought to the file."""
        self._try("flush")
        return {}

    def _reopen(self) -> None:
        if self._writer is None:
            self._open(None)

    def _open(self, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def _try(self, method: str) -> None:
        if self._writer is not None:
            try:
                getattr(self._writer, method)()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Its thread has ended with the error; the next number begins another file."""
        self._writer = None
        if not self._is_lossy:
            _log.warning("%s: some numbers are left out: %s", self._folder, error)
        self._is_lossy = True


def _flat(prefix: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        tag = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _flat(tag, value)
        elif value is not None:
            yield tag, float(value)
