"""One part of a source, cleaned and split, onto disk: what one process does at a time.

Beside the spool file of a side lie the names of its texts (``.names``) and, if near duplicates
are looked for, their signatures (``.signatures``); beside them all, what was left out and why
(``.removed.jsonl``). A part's files and counts depend on the task alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning.decontaminate import NAMED, Guard, Hit
from data_pipeline.cleaning.exact_duplicates import text_digest
from data_pipeline.cleaning.filters.filter import Filter, Filters, Refusal
from data_pipeline.cleaning.near_duplicates import NearDuplicates
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.cleaning.removal import HEAD, Counts, Removal, RemovalLog, write_names
from data_pipeline.cleaning.split import SIDES, Side, Splitter
from data_pipeline.example import Document
from data_pipeline.sources.source import Part, Rejected
from data_pipeline.spool import Block, Spool

_BATCH_CHARACTERS = 1 << 17
_BATCH_TEXTS = 1 << 10


@dataclass(frozen=True, slots=True)
class CleanTask:
    """What is to be done.

    Attributes:
        part: of a source.
        splitter: puts documents on sides.
        stem: of the files; the side is added to it.
        rejected_at_most: reading stops at one more: the whole will be refused.
        filters: what a text of either side must pass, in order.
        guard: texts that the train side must not hold.
        near: how signatures are made; None: they are not.
    """

    part: Part
    splitter: Splitter
    stem: Path
    rejected_at_most: int | None
    filters: tuple[Filter, ...] = ()
    guard: Guard | None = None
    near: NearDuplicates | None = None


@dataclass(frozen=True, slots=True)
class CleanSide:
    """The texts of one side.

    Attributes:
        blocks: where they lie.
        digests: ``text_digest`` of each, one behind the other.
        names: file of the documents' ids, one a text (``read_names``).
        signatures: file of uint32 [texts, permutations] (``read_signatures``), if asked for.
        removed: what was left out of this side, by step and reason.
    """

    blocks: tuple[Block, ...]
    digests: bytes
    names: Path
    signatures: Path | None = None
    removed: Counts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CleanPart:
    """What came of a part.

    Attributes:
        sides: the texts that are left.
        documents: how many there were.
        empty: how many of them held nothing but space; they are counted, not logged.
        rejected: what was no document.
        removed: the log of what was left out, if anything was.
        changed: what filters took out of texts that stay: filter -> what -> how often.
        contaminated: the first documents that a strict guard found, as (id, hit).
        refused: how many documents it found.
    """

    sides: dict[Side, CleanSide]
    documents: int
    empty: int
    rejected: tuple[Rejected, ...]
    removed: Path | None = None
    changed: Counts = field(default_factory=dict)
    contaminated: tuple[tuple[str, Hit], ...] = ()
    refused: int = 0


def clean_part(task: CleanTask) -> CleanPart:
    """Read, normalise, filter and split a part."""
    rejected: list[Rejected] = []
    documents = empty = 0
    filters = Filters(task.filters)
    with _Sink(task) as sink:
        for item in task.part.read():
            if not isinstance(item, Document):
                rejected.append(item)
                if task.rejected_at_most is not None and len(rejected) > task.rejected_at_most:
                    break
                continue
            documents += 1
            text = normalise(item.text)
            if not text:
                empty += 1
                continue
            side = task.splitter.side(item.group)
            judged = filters.judge(text)
            if not isinstance(judged, str):
                step, refusal = judged
                sink.remove(item.id, side, text, step, refusal)
                continue
            sink.add(item.id, side, judged)
        sides = sink.finish()
    changed = {name: dict(notes) for name, notes in filters.notes.items() if notes}
    found, refused = tuple(sink.contaminated), sink.refused
    log = sink.log.path if sink.log.counts else None
    return CleanPart(sides, documents, empty, tuple(rejected), log, changed, found, refused)


def read_signatures(path: Path, near: NearDuplicates) -> NDArray[np.uint32]:
    """The signatures of a side's texts, mapped from their file: uint32 [texts, permutations]."""
    if not path.stat().st_size:
        return np.zeros((0, near.permutations), np.uint32)
    return np.memmap(path, "<u4", "r").reshape(-1, near.permutations)


@dataclass(slots=True)
class _SideSink:
    """The files of one side."""

    spool: Spool
    names: Path
    signatures: IO[bytes] | None
    digests: list[bytes] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def append(self, name: str, text: str) -> None:
        self.spool.append(text)
        self.digests.append(text_digest(text))
        self.ids.append(name)

    def finish(self, removed: Counts) -> CleanSide:
        write_names(self.names, self.ids)
        signatures = None if self.signatures is None else Path(self.signatures.name)
        return CleanSide(
            self.spool.close(), b"".join(self.digests), self.names, signatures, removed
        )


class _Sink:
    """Where texts go that have passed the filters: in batches, for what looks at many at once."""

    def __init__(self, task: CleanTask) -> None:
        self._task = task
        self._stack = ExitStack()
        self._waiting: list[tuple[str, Side, str]] = []
        self._characters = 0
        self.log = RemovalLog(self._path("removed.jsonl"))
        self.contaminated: list[tuple[str, Hit]] = []
        self.refused = 0

    def __enter__(self) -> "_Sink":
        self._stack.enter_context(self.log)
        self._sides = {side: self._open(side) for side in SIDES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, name: str, side: Side, text: str) -> None:
        self._waiting.append((name, side, text))
        self._characters += len(text)
        if self._characters >= _BATCH_CHARACTERS or len(self._waiting) >= _BATCH_TEXTS:
            self._flush()

    def remove(self, name: str, side: Side, text: str, step: str, refusal: Refusal) -> None:
        head = text[:HEAD]
        self.log.add(Removal(name, side, step, refusal.reason, refusal.detail, head))

    def finish(self) -> dict[Side, CleanSide]:
        self._flush()
        return {
            side: sink.finish(self.log.counts.get(side, {})) for side, sink in self._sides.items()
        }

    def _flush(self) -> None:
        for side in SIDES:
            batch = [(name, text) for name, other, text in self._waiting if other == side]
            if side == "train" and self._task.guard is not None:
                batch = list(self._passing(self._task.guard, batch))
            if not batch:
                continue
            sink = self._sides[side]
            for name, text in batch:
                sink.append(name, text)
            if self._task.near is not None and sink.signatures is not None:
                signatures = self._task.near.signatures([text for _, text in batch])
                sink.signatures.write(signatures.astype("<u4", copy=False).tobytes())
        self._waiting, self._characters = [], 0

    def _passing(self, guard: Guard, batch: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        hits = guard.find([text for _, text in batch])
        for (name, text), hit in zip(batch, hits, strict=True):
            if hit is None:
                yield name, text
                continue
            self.remove(name, "train", text, "decontaminate", Refusal(hit.rule, hit.row))
            if guard.strict:
                self.refused += 1
                if len(self.contaminated) < NAMED:
                    self.contaminated.append((name, hit))

    def _open(self, side: Side) -> _SideSink:
        spool = self._stack.enter_context(Spool(self._path(side)))
        signatures: IO[bytes] | None = None
        if self._task.near is not None:
            path = self._path(f"{side}.signatures")
            signatures = self._stack.enter_context(path.open("wb"))
        return _SideSink(spool, self._path(f"{side}.names"), signatures)

    def _path(self, ending: str) -> Path:
        return self._task.stem.with_name(f"{self._task.stem.name}.{ending}")
