"""The tasks that one participant does for all: what to begin with, the tokenizer, the end."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from configs.stage import StageContext
from data_pipeline.cleaning import Decontamination
from data_pipeline.disk import disk_errors, fsync_path
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.preparing.decide import Plan
from data_pipeline.preparing.state import State, clear, output_folder
from data_pipeline.tokenization import tokenizer_record

if TYPE_CHECKING:
    from data_pipeline.tokenization import TokenizerConfig


@dataclass(frozen=True, slots=True)
class Begin:
    """Task: find what an earlier run has made of the same files, and take away anything else.

    Attributes:
        files: what is known of all files that are read, by place.
        boards: folder of boards; those of other files or another recipe go.
        current: names of those that stay.
    """

    context: StageContext
    files: Mapping[str, Sequence[Facts]]
    boards: Path
    current: frozenset[str]
    name: str = "all"
    weight: int = 1

    def run(self) -> Outcome:
        folder = self.context.folder
        for pattern in ("read-*", "work-*"):
            for other in self.boards.glob(pattern):
                if other.name not in self.current:
                    shutil.rmtree(other, ignore_errors=True)
        found = State.read(folder, self.context.key)
        before = {place: _digests(files) for place, files in found.files.items()}
        now = {place: _digests(files) for place, files in self.files.items()}
        made = found.intact(folder) if before == now else {}
        if not made:
            with disk_errors(folder):
                clear(folder)
        return Outcome({"made": made})


def _digests(files: Sequence[Facts]) -> list[tuple[str, str]]:
    return [(facts["name"], facts["digest"]) for facts in files]


@dataclass(frozen=True, slots=True)
class BuildGuard:
    """Task: gather the texts that a corpus must not train on.

    Attributes:
        target: the file for ``Guard``.
    """

    name: str
    config: Decontamination
    context: StageContext
    target: Path
    weight: int = 1

    def run(self) -> Outcome:
        with disk_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.config.build(self.context.locate).save(self.target)
        return Outcome({}, (self.target,))


@dataclass(frozen=True, slots=True)
class BuildTokenizer:
    """Task: train or fetch the tokenizer.

    Attributes:
        plans: of the train sides, by corpus.
        target: its folder.
        building: where it is put together.
        made: its digest, if an earlier run has left it in ``target``.
    """

    tokenizer: "TokenizerConfig"
    context: StageContext
    plans: Mapping[str, Plan]
    target: Path
    building: Path
    made: bool
    name: str = "all"
    weight: int = 1

    def run(self) -> Outcome:
        if not self.made:
            self._build()
        record = tokenizer_record(self.target)
        files = tuple(path for path in sorted(self.target.iterdir()) if path.is_file())
        told = {"ids": record.vocabulary_size}
        return Outcome({"record": record.model_dump(mode="json"), "told": told}, files)

    def _build(self) -> None:
        for folder in (self.target, self.building):
            shutil.rmtree(folder, ignore_errors=True)
        with disk_errors(self.building):
            self.building.parent.mkdir(parents=True, exist_ok=True)
            self.tokenizer.build(self.building, self.context.locate, self._texts)
            for path in self.building.iterdir():
                fsync_path(path)
            self.building.replace(self.target)
            fsync_path(self.target.parent)

    def _texts(self, names: Sequence[str]) -> Iterator[str]:
        return chain.from_iterable(self.plans[name].texts() for name in names)


@dataclass(frozen=True, slots=True)
class Finish:
    """Task: note what was made, and of what."""

    context: StageContext
    files: Mapping[str, Sequence[Facts]]
    made: Mapping[str, str]
    name: str = "all"
    weight: int = 1

    def run(self) -> Outcome:
        for name in self.made:
            remove_leftovers(output_folder(self.context.folder, name))
        files = {place: list(known) for place, known in self.files.items()}
        state = State(self.context.key, files, dict(self.made))
        state.write(self.context.folder)
        return Outcome({"fingerprint": state.fingerprint})


def remove_leftovers(folder: Path) -> None:
    """Take away files under temporary names, of processes that were killed as they wrote them.

    Nobody may be writing there: into a stage's own folder only its first participant does, and
    into the folder of an output nobody once it is made.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def remove_boards(folder: Path) -> None:
    """Take away records and spooled texts; nobody reads them any more."""
    for left in folder.parent.glob(f"{folder.name}.*.removed"):
        shutil.rmtree(left, ignore_errors=True)
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}.removed")
    try:
        folder.replace(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
