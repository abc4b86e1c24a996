"""One part of a source, read, normalised and split, onto disk: what one process does at a time."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.cleaning.exact_duplicates import text_digest
from data_pipeline.cleaning.exclude import NOTHING, Excluded
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.cleaning.split import SIDES, Side, Splitter
from data_pipeline.example import Document
from data_pipeline.sources.source import Part, Rejected
from data_pipeline.spool import Block, Spool


@dataclass(frozen=True, slots=True)
class CleanTask:
    """What is to be done.

    Attributes:
        part: of a source.
        splitter: puts documents on sides.
        stem: of the spool files; the side is added to it.
        rejected_at_most: reading stops at one more: the whole will be refused.
        excluded: texts that the train side must not hold.
    """

    part: Part
    splitter: Splitter
    stem: Path
    rejected_at_most: int | None
    excluded: Excluded = NOTHING


@dataclass(frozen=True, slots=True)
class CleanSide:
    """The texts of one side.

    Attributes:
        blocks: where they lie.
        digests: ``text_digest`` of each, one behind the other.
    """

    blocks: tuple[Block, ...]
    digests: bytes


@dataclass(frozen=True, slots=True)
class CleanPart:
    """What came of a part.

    Attributes:
        sides: the texts that are left.
        documents: how many there were.
        empty: how many of them held nothing but space.
        excluded: how many were taken out of train because of a text that it must not hold.
        rejected: what was no document.
    """

    sides: dict[Side, CleanSide]
    documents: int
    empty: int
    excluded: int
    rejected: tuple[Rejected, ...]


def clean_part(task: CleanTask) -> CleanPart:
    """Read, normalise and split a part."""
    digests: dict[Side, list[bytes]] = {side: [] for side in SIDES}
    rejected: list[Rejected] = []
    documents = empty = excluded = 0
    with ExitStack() as stack:
        paths = {side: task.stem.with_name(f"{task.stem.name}.{side}") for side in SIDES}
        spools = {side: stack.enter_context(Spool(paths[side])) for side in SIDES}
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
            if side == "train" and task.excluded.holds(text):
                excluded += 1
                continue
            spools[side].append(text)
            digests[side].append(text_digest(text))
        sides = {side: CleanSide(spools[side].close(), b"".join(digests[side])) for side in SIDES}
    return CleanPart(sides, documents, empty, excluded, tuple(rejected))
