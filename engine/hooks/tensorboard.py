"""TensorBoard event files of the same numbers that the JSON lines hold."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import ResourceError
from engine.board import session as board_session
from engine.board.layout import layout, summary_of
from engine.board.session import Session, Told
from engine.board.tags import place, values
from engine.checkpoint.disk import disk_errors
from engine.protocols import Backend, Hook, Progress

_log = logging.getLogger(__name__)


class TensorBoardHook(Hook):
    """A sink for the other hooks; on a resume, events after the checkpoint are purged.

    ``engine.board.tags`` says under which tag a number stands. The charts of the custom scalars
    are drawn up anew whenever a tag comes that is not on them yet. The numbers are in other files,
    too: where the disk refuses, some are left out here.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, session: Session | None = None) -> None:
        """Set up.

        Args:
            folder: for the event files.
            session: what is told of the stage as a whole, once.
        """
        self._folder = folder
        self._session = session
        self._told = Told(folder)
        self._writer: Any = None
        self._is_lossy = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Open the file on rank 0; tell of the stage what has not been told."""
        if backend.rank != 0:
            return
        if self._writer is None:
            with disk_errors(self._folder):
                if progress.step == 0:
                    self._void()
                self._open(progress.step + 1 if progress.step else 0)
            self._told = Told.read(self._folder)
        self._attempt(lambda: self._tell_session(progress.step))

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Every number under its tag, words as text; nulls are left out."""
        self._attempt(lambda: self._write(kind, step, numbers))

    def write_text(self, kind: str, step: int, text: str) -> None:
        """A page of Markdown under the name of its kind."""
        self._attempt(lambda: self._writer.add_text(kind, text, step))

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Close the file."""
        del backend, progress
        self._close()

    def finish(self, backend: Backend, step: int) -> None:
        """The stage has come to its end after ``step``, be it the last one or not: so has it told.

        The loop cannot say so: it ends alike where it is left to go on in another way.
        """
        if backend.rank == 0 and self._session:
            self._attempt(lambda: board_session.end(self._writer, step))
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but what belongs to the checkpoint is brought to the file."""
        self._try("flush")
        return {}

    def _close(self) -> None:
        if self._writer is not None:
            self._try("close")
            self._writer = None

    def _write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for all of them: an event each takes many times as long.
        told, tags = Summary(), set()
        for path, value in values(numbers):
            tag = place(kind, path)
            if isinstance(value, str):
                self._writer.add_text(tag, value, step)
            else:
                told.value.add(tag=tag, simple_value=value)
                tags.add(tag)
        self._writer._get_file_writer().add_summary(told, step)
        if not tags <= self._told.tags:
            self._told.tags |= tags
            self._tell_layout(step)
            self._keep_told()

    def _tell_layout(self, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if charts := layout(self._told.tags):
            told = Summary(value=[summary_of(charts)])
            self._writer._get_file_writer().add_summary(told, step)

    def _tell_session(self, step: int) -> None:
        session = self._session
        if session is None or session.digest == self._told.digest:
            return
        board_session.begin(self._writer, session, step)
        self._told.digest, self._told.settings = session.digest, dict(session.settings)
        self._keep_told()

    def _keep_told(self) -> None:
        """What is told once is in the event file first: a kill in between tells it twice."""
        self._writer.flush()
        self._told.write()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            if self._writer is None:
                self._open(None)
            action()
        except (OSError, ResourceError) as error:
            self._lose(error)

    def _void(self) -> None:
        """A run that starts anew voids what one before it wrote and lost."""
        for path in (*self._folder.glob("events.*"), self._folder / board_session.FILE):
            path.unlink(missing_ok=True)

    def _open(self, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def _try(self, method: str) -> None:
        if self._writer is not None:
            try:
                getattr(self._writer, method)()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Its thread has ended with the error; the next number begins another file."""
        self._writer = None
        if not self._is_lossy:
            _log.warning("%s: some numbers are left out: %s", self._folder, error)
        self._is_lossy = True
