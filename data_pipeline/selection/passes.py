"""What is done with each part of the sources: drawn from, judged, written; in any process."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.analysis.hashing import mixed
from data_pipeline.disk import disk_errors
from data_pipeline.example import Document
from data_pipeline.randomness import keyed
from data_pipeline.selection.method import Method, Scorer
from data_pipeline.sources import Part, Rejected

AT_ONCE = 256
HEAD = 160
SURROGATES = re.compile("[\ud800-\udfff]")

Drawn = tuple[int, str]
"""A document's number in the draw, and its text."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds memory.

    Attributes:
        drawn: at most so many documents are learnt from.
        characters: a document is judged by so many of its first ones.
        key: the draw is by it.
    """

    drawn: int
    characters: int
    key: int


@dataclass(frozen=True, slots=True)
class DrawTask:
    """A part to be read for the first time."""

    part: Part
    number: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class DrawnPart:
    """What a part holds.

    Attributes:
        sample: its documents with the smallest numbers in the draw.
        documents: how many it has.
        rejected: how many more records are no documents.
        last: the last of them.
    """

    sample: Sequence[Drawn]
    documents: int
    rejected: int
    last: Rejected | None


def draw_part(task: DrawTask) -> DrawnPart:
    """Count a part's documents and draw some of them."""
    count = rejected = 0
    last = None
    salt = keyed(task.limits.key, task.number)

    def drawn() -> Iterator[Drawn]:
        nonlocal count, rejected, last
        for item in task.part.read():
            if isinstance(item, Document):
                yield _rank(salt, count), item.text[: task.limits.characters]
                count += 1
            else:
                rejected, last = rejected + 1, item

    sample = nsmallest(task.limits.drawn, drawn())
    return DrawnPart(sample, count, rejected, last)


def draw_texts(texts: Iterable[str], limits: Limits) -> list[str]:
    """A fixed random sample of texts, in random order."""
    salt = keyed(limits.key, "texts")
    ranked = ((_rank(salt, at), text[: limits.characters]) for at, text in enumerate(texts))
    return [text for _, text in nsmallest(limits.drawn, ranked)]


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """A part to be judged.

    Attributes:
        part: the part.
        method: the method.
        scorer: a file with what it has learnt, as arrays: a pickle would run what it is told to.
        characters: a document is judged by so many of its first ones.
    """

    part: Part
    method: Method
    scorer: Path
    characters: int


@dataclass(frozen=True, slots=True)
class JudgedPart:
    """Scores fp64 and lengths int64 (in characters) of a part's documents."""

    scores: NDArray[np.float64]
    characters: NDArray[np.int64]


def judge_part(task: JudgeTask) -> JudgedPart:
    """Score every document of a part."""
    scorer = _load(task.method, task.scorer)
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    lengths: list[int] = []
    texts: list[str] = []
    for document in _documents(task.part):
        lengths.append(len(document.text))
        texts.append(document.text[: task.characters])
        if len(texts) == AT_ONCE:
            scores.append(scorer.score(texts))
            texts = []
    if texts:
        scores.append(scorer.score(texts))
    return JudgedPart(np.concatenate(scores), np.array(lengths, np.int64))


@dataclass(frozen=True, slots=True)
class TakeTask:
    """A part to be taken from.

    Attributes:
        part: the part.
        documents: how many it had when it was judged.
        kept: int64, ascending: numbers within the part of those that are kept.
        scores: fp64, of those.
        shown: numbers of those that are to be described.
        target: the file for those that are kept: a part may be a packed file of any size.
    """

    part: Part
    documents: int
    kept: NDArray[np.int64]
    scores: NDArray[np.float64]
    shown: Sequence[int]
    target: Path


def take_part(task: TakeTask) -> dict[int, dict[str, str]]:
    """Write the documents that are kept, one JSON object a line, as they stand in the source.

    Returns:
        number within the part -> id and the text's beginning, of those to be described.

    Raises:
        DataError: the source changed since it was judged.
        ResourceError: the disk is full.
    """
    scores = dict(zip(task.kept.tolist(), task.scores.tolist(), strict=True))
    wanted = set(task.shown)
    shown: dict[int, dict[str, str]] = {}
    number = -1
    with disk_errors(task.target), task.target.open("wb") as file:
        for number, document in enumerate(_documents(task.part)):
            if number in scores:
                file.write(_line(document, scores[number]))
            if number in wanted:
                shown[number] = {"id": document.id, "begins": document.text[:HEAD]}
    if number + 1 != task.documents:
        msg = (
            f"select: a source had {task.documents:,} documents when it was judged and has "
            f"{number + 1:,} now; keep its files as they are while it is read, and run again"
        )
        raise DataError(msg)
    return shown


def save(scorer: Scorer, path: Path) -> None:
    """For ``judge_part`` in other processes."""
    _load.cache_clear()
    with disk_errors(path), path.open("wb") as file:
        np.savez(file, allow_pickle=False, **scorer.arrays())


@lru_cache(maxsize=1)
def _load(method: Method, path: Path) -> Scorer:
    with np.load(path, allow_pickle=False) as arrays:
        return method.restored(dict(arrays))


def _documents(part: Part) -> Iterator[Document]:
    return (item for item in part.read() if isinstance(item, Document))


def _rank(salt: int, number: int) -> int:
    return int(mixed(np.array([number ^ salt], np.uint64))[0])


def _line(document: Document, score: float) -> bytes:
    row: dict[str, Any] = {
        "id": document.id,
        "group": document.group,
        "text": document.text,
        "score": round(score, 6),
        "metadata": dict(document.metadata),
    }
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    # Half a surrogate pair is no text; what is done to it when a corpus is prepared.
    return SURROGATES.sub("\ufffd", line).encode()
