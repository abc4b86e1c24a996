"""What TensorBoard is told of a stage as a whole: its pages, its settings, which tags it has.

``board.json`` beside the event files keeps what was told, so that a resumed run tells it once, and
so that ``onward board`` need not read event files to know the tags.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from data_pipeline.whole_file import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "board.json"
Hyperparameters = Mapping[str, bool | float | str]


@dataclass(frozen=True, slots=True)
class Session:
    """One row of the HParams page, with the pages of text that go with it.

    Attributes:
        name: of the trial, such as ``RUN/STAGE``; each is a group of its own.
        settings: by name; a stage that has none of a name leaves it out.
        pages: title -> Markdown.
    """

    name: str
    settings: Hyperparameters
    pages: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all that it tells."""
        told = [self.name, dict(self.settings), dict(self.pages)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass
class Told:
    """What the event files of a folder hold, but for the curves themselves.

    Attributes:
        folder: of the event files.
        tags: of numbers.
        digest: of the session that was told last.
        settings: its settings.
    """

    folder: Path
    tags: set[str] = field(default_factory=set)
    digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Told":
        """What ``board.json`` says; nothing if it is not there or not to be read."""
        try:
            values = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(folder, set(values["tags"]), values["digest"], dict(values["settings"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def write(self) -> None:
        """Replace ``board.json``."""
        values = {"digest": self.digest, "settings": self.settings, "tags": sorted(self.tags)}
        content = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.folder / FILE, content.encode())


def begin(writer: "SummaryWriter", session: Session, step: int) -> None:
    """Write a session's settings and its pages."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    if session.settings:
        started = hparams_pb(dict(session.settings), session.name, time())
        writer._get_file_writer().add_summary(started, step)
    for title, text in session.pages.items():
        writer.add_text(title, text, step)


def end(writer: "SummaryWriter", step: int) -> None:
    """Mark the session as having come to its end."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    ended = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time())
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=ended))
    summary = Summary()
    summary.value.add(
        tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR
    )
    writer._get_file_writer().add_summary(summary, step)
