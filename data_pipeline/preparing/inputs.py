"""The files that a prepare stage reads: which they are, what is in them, if they changed."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from configs.hub import is_hub_name
from configs.stage import StageContext
from data_pipeline.persistence import DEADLINE_VARIABLE
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.preparing.values import to_json
from data_pipeline.sources.datasets_library import DatasetsSource
from data_pipeline.sources.file_source import FileSource, joined
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.source import DocumentSource, Locate, Part

if TYPE_CHECKING:
    from data_pipeline.prepare import PrepareStage

QUICK = "20"
"""Seconds, for remote files that are only compared."""
TASK_BYTES = 1 << 30
TASK_FILES = 256
"""A task takes files until it has so many bytes, or so many files."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Input:
    """Files that one place of the config names.

    Attributes:
        place: dotted, such as ``corpora.general.sources.0``.
        files: in order.
        source: the source that reads them as documents; None for files with another use.
    """

    place: str
    files: tuple[SourceFile, ...]
    source: DocumentSource | None = None


def source_place(corpus: str, number: int) -> str:
    """``Input.place`` of a corpus's source."""
    return f"corpora.{corpus}.sources.{number}"


def guard_place(corpus: str) -> str:
    """What ``Input.place`` of the texts begins with that a corpus must not hold."""
    return f"corpora.{corpus}.decontaminate.against."


def list_inputs(stage: "PrepareStage", locate: Locate) -> list[Input]:
    """All files of a stage; DataError when some are not there."""
    return [Input(at.name, tuple(at.files(locate)), at.source) for at in _places(stage)]


@dataclass(frozen=True, slots=True)
class _Place:
    """One place of the config, before its files are looked for."""

    name: str
    files: Callable[[Locate], Sequence[SourceFile]]
    source: DocumentSource | None = None

    @property
    def is_on_hub(self) -> bool:
        """What was read of the hub is a commit, which does not change."""
        return isinstance(self.source, DatasetsSource) and is_hub_name(self.source.path)


def _places(stage: "PrepareStage") -> Iterator[_Place]:
    for at, location in enumerate(stage.tokenizer.locations):
        yield _Place(f"tokenizer.{at}", partial(_plain, location))
    for name, corpus in stage.corpora.items():
        for number, source in enumerate(corpus.sources):
            yield _Place(source_place(name, number), source.files, source)
        guarded = corpus.decontaminate.sources() if corpus.decontaminate else ()
        for number, against in enumerate(guarded):
            yield _Place(f"{guard_place(name)}{number}", against.files)
        for location in corpus.split.locations if corpus.split else ():
            yield _Place(f"corpora.{name}.split", partial(_plain, location))


def _plain(location: str, locate: Locate) -> tuple[SourceFile, ...]:
    path = locate(location)
    if path.is_file():
        return (SourceFile(path, path.name),)
    return tuple(
        SourceFile(found, found.relative_to(path).as_posix())
        for found in sorted(path.rglob("*"))
        if found.is_file()
    )


@dataclass(frozen=True, slots=True)
class ReadInput:
    """Task: digests of some files of an input, and the parts that its source has in them.

    Attributes:
        files: those; with ``alone`` they are all of the input's.
        known: what an earlier run found of each: its digest counts where the stamp is the same.
        alone: the source gives its parts only for all its files together.
    """

    name: str
    weight: int
    files: tuple[SourceFile, ...]
    known: tuple[Facts | None, ...]
    source: DocumentSource | None
    context: StageContext
    alone: bool

    def run(self) -> Outcome:
        files = [stamped(file, known) for file, known in zip(self.files, self.known, strict=True)]
        weights, parts = [], []
        for weight, part in self._parts():
            weights.append(weight)
            parts.append(to_json(part))
        return Outcome({"files": files, "parts": parts, "weights": weights})

    def _parts(self) -> Iterator[tuple[int, Part]]:
        """Each part, and about how many bytes it has."""
        if self.source is None:
            return
        if isinstance(self.source, FileSource) and not self.alone:
            source = self.source
            parts = list(joined((file, source.parts_of(file)) for file in self.files))
        else:
            parts = self.source.parts(self.context.locate)
        for part in parts:
            yield max(1, self.weight // len(parts)), part


def stamped(file: SourceFile, known: Facts | None) -> Facts:
    """``{name, stamp, digest}`` of a file; it is read only where its stamp is not the known one."""
    # Before the content: a change between the two is then noticed later.
    stamp = file.stamp()
    same = known is not None and (known["name"], known["stamp"]) == (file.name, stamp)
    digest = known["digest"] if same and known is not None else file.digest()
    return {"name": file.name, "stamp": stamp, "digest": digest}


def reading_tasks(
    inputs: Sequence[Input], known: Mapping[str, Sequence[Facts]], context: StageContext
) -> list[ReadInput]:
    """The tasks that read all inputs, in order."""
    tasks = []
    for found in inputs:
        before = {facts["name"]: facts for facts in known.get(found.place, ())}
        alone = found.source is not None and not isinstance(found.source, FileSource)
        for number, (files, size) in enumerate(_groups(found.files, alone=alone)):
            saved = tuple(before.get(file.name) for file in files)
            name = f"{found.place}.{number:05d}"
            tasks.append(ReadInput(name, size, files, saved, found.source, context, alone))
    return tasks


def _groups(
    files: Sequence[SourceFile], *, alone: bool
) -> Iterator[tuple[tuple[SourceFile, ...], int]]:
    held: list[SourceFile] = []
    size = 0
    for file in files:
        held.append(file)
        size += file.size() or 1
        if not alone and (size >= TASK_BYTES or len(held) == TASK_FILES):
            yield tuple(held), size
            held, size = [], 0
    if held or alone:
        yield tuple(held), size


def listing_digest(key: str, inputs: Sequence[Input]) -> str:
    """Tells lists of files apart, without reading one."""
    total = hashlib.sha256(key.encode())
    for found in inputs:
        for file in found.files:
            total.update(f"{found.place}\x00{file.name}\x00{file.size()}\n".encode())
    return total.hexdigest()


def source_digest(files: Sequence[Facts]) -> str:
    """``DocumentSource.digest`` from what is known of its files."""
    total = hashlib.sha256()
    for facts in files:
        total.update(f"{facts['digest']}\n".encode())
    return total.hexdigest()


def change(
    stage: "PrepareStage", locate: Locate, known: Mapping[str, Sequence[Facts]]
) -> str | None:
    """What differs between the files now and what is known of them; None when nothing does.

    Reads only those whose stamp differs. What cannot be looked at any more is no change, but is
    told: a finished stage needs it no more.
    """
    pairs: list[tuple[SourceFile, Facts]] = []
    with _quickly():
        for at in _places(stage):
            if at.is_on_hub:
                continue
            try:
                files = at.files(locate)
            except DataError as error:
                _logger.warning("%s cannot be compared with what was made: %s", at.name, error)
                continue
            if other := _other_names(known.get(at.name, ()), files):
                return f"{at.name}: {other}"
            pairs += zip(files, known[at.name], strict=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda pair: stamped(*pair), pairs)
            for (file, before), after in zip(pairs, found, strict=True):
                if after["digest"] != before["digest"]:
                    return f"{file}: its content has changed"
    return None


def _other_names(known: Sequence[Facts], files: Sequence[SourceFile]) -> str | None:
    before, now = [facts["name"] for facts in known], [file.name for file in files]
    if before == now:
        return None
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    if gone:
        return f"{gone[0]} is gone"
    return f"{new[0]} is new" if new else "its files have another order"


@contextmanager
def _quickly() -> Iterator[None]:
    """Remote stores are not waited for as long as they are while they are read."""
    before = os.environ.get(DEADLINE_VARIABLE)
    os.environ[DEADLINE_VARIABLE] = QUICK
    try:
        yield
    finally:
        if before is None:
            del os.environ[DEADLINE_VARIABLE]
        else:
            os.environ[DEADLINE_VARIABLE] = before


def files_by_place(
    inputs: Sequence[Input], tasks: Sequence[ReadInput], facts: Sequence[Facts]
) -> dict[str, list[Any]]:
    """``{name, stamp, digest}`` of every file, by place."""
    found: dict[str, list[Any]] = {one.place: [] for one in inputs}
    for task, told in zip(tasks, facts, strict=True):
        found[task.name.rpartition(".")[0]] += told["files"]
    return found
