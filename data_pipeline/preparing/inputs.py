"""The files that a prepare stage reads: which they are, what is in them, if they changed."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from configs.stage import StageContext
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.preparing.values import to_json
from data_pipeline.sources.file_source import FileSource, joined
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.source import DocumentSource, Locate, Part

if TYPE_CHECKING:
    from data_pipeline.prepare import PrepareStage

TASK_BYTES = 1 << 30
TASK_FILES = 256
"""A task takes files until it has so many bytes, or so many files."""


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
    found = [
        Input(f"tokenizer.{at}", _plain(locate(location)))
        for at, location in enumerate(stage.tokenizer.locations)
    ]
    for name, corpus in stage.corpora.items():
        for number, source in enumerate(corpus.sources):
            found.append(Input(source_place(name, number), tuple(source.files(locate)), source))
        guarded = corpus.decontaminate.sources() if corpus.decontaminate else ()
        for number, source in enumerate(guarded):
            place = f"{guard_place(name)}{number}"
            found.append(Input(place, tuple(source.files(locate))))
        locations = corpus.split.locations if corpus.split else ()
        found += [Input(f"corpora.{name}.split", _plain(locate(at))) for at in locations]
    return found


def _plain(path: Path) -> tuple[SourceFile, ...]:
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

    Inputs that are gone as a whole are no change: a finished stage needs them no more. Reads only
    those whose stamp differs.
    """
    try:
        inputs = list_inputs(stage, locate)
    except DataError:
        return None
    now = {found.place: found.files for found in inputs}
    for place in dict.fromkeys([*known, *now]):
        before = [facts["name"] for facts in known.get(place, ())]
        names = [file.name for file in now.get(place, ())]
        if before != names:
            gone, new = sorted(set(before) - set(names)), sorted(set(names) - set(before))
            return f"{place}: " + (f"{gone[0]} is gone" if gone else f"{new[0]} is new")
    pairs = [pair for place, files in now.items() for pair in zip(files, known[place], strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda pair: stamped(pair[0], pair[1]), pairs)
        for (file, before_), after in zip(pairs, found, strict=True):
            if after["digest"] != before_["digest"]:
                return f"{file}: its content has changed"
    return None


def files_by_place(
    inputs: Sequence[Input], tasks: Sequence[ReadInput], facts: Sequence[Facts]
) -> dict[str, list[Any]]:
    """``{name, stamp, digest}`` of every file, by place."""
    found: dict[str, list[Any]] = {one.place: [] for one in inputs}
    for task, told in zip(tasks, facts, strict=True):
        found[task.name.rpartition(".")[0]] += told["files"]
    return found
