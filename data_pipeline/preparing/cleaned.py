"""Cleaning as tasks: a part of a source each; what came of it lies on disk, as arrays."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning import SIDES, CleanPart, CleanTask, Side, clean_part
from data_pipeline.disk import disk_errors
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.sources import Rejected

REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class CleanSource:
    """Task: clean one part of a source.

    Attributes:
        corpus: its name.
        source: number of the source in the corpus.
        clean: what is to be done; its ``stem`` names all that is written.
    """

    name: str
    weight: int
    corpus: str
    source: int
    clean: CleanTask

    def run(self) -> Outcome:
        stem = self.clean.stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(stem):
            done = clean_part(self.clean)
            arrays, rejected = (_file(stem, ending) for ending in ("npz", REJECTED))
            np.savez(arrays, allow_pickle=False, **_arrays(done))
            with rejected.open("w", encoding="utf-8") as stream:
                stream.writelines(map(self._rejected_line, done.rejected))
        return Outcome(_facts(done), (arrays, rejected, *_written(done, stem)))

    def _rejected_line(self, item: Rejected) -> str:
        line = {"corpus": self.corpus, "where": item.where, "reason": item.reason}
        return json.dumps(line, ensure_ascii=False) + "\n"


def _facts(done: CleanPart) -> Facts:
    last = done.rejected[-1] if done.rejected else None
    return {
        "documents": done.documents,
        "empty": done.empty,
        "rejected": len(done.rejected),
        "last_rejected": None if last is None else [last.where, last.reason],
        "removed": {side: done.sides[side].removed for side in SIDES},
        "changed": done.changed,
        "contaminated": [[name, hit.rule, hit.row] for name, hit in done.contaminated],
        "refused": done.refused,
        "told": {"documents": done.documents},
    }


def _written(done: CleanPart, stem: Path) -> Iterator[Path]:
    for side in SIDES:
        cleaned = done.sides[side]
        yield from (spool_file(stem, side), cleaned.names)
        if cleaned.signatures is not None:
            yield cleaned.signatures
    if done.removed is not None:
        yield done.removed


def _file(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}.{ending}")


def part_stem(spool: Path, corpus: str, number: int) -> Path:
    """What the names of a part's files begin with."""
    return spool / f"{corpus}.{number:06d}"


def spool_file(stem: Path, side: Side) -> Path:
    """Where the texts of one side of a part lie."""
    return _file(stem, side)


def names_file(stem: Path, side: Side) -> Path:
    """The ids of the documents of one side of a part, as ``read_names`` reads them."""
    return _file(stem, f"{side}.names")


def signatures_file(stem: Path, side: Side) -> Path:
    """Signatures of the texts of one side of a part, where near duplicates are looked for."""
    return _file(stem, f"{side}.signatures")


def rejected_file(stem: Path) -> Path:
    """What was no document, a JSON line each."""
    return _file(stem, REJECTED)


def removed_file(stem: Path) -> Path:
    """What was left out of the part, a JSON line each; absent where nothing was."""
    return _file(stem, "removed.jsonl")


def _arrays(part: CleanPart) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for side in SIDES:
        cleaned = part.sides[side]
        blocks = [(block.start, block.texts) for block in cleaned.blocks]
        found[f"{side}.blocks"] = np.array(blocks, np.int64).reshape(-1, 2)
        found[f"{side}.digests"] = np.frombuffer(cleaned.digests, "<u8").reshape(-1, 2)
    return found


@dataclass(frozen=True, slots=True)
class SideTexts:
    """All texts of one side of a corpus, by what is known of them.

    Attributes:
        digests: uint64 [texts, 2], ``text_digest`` of each.
        blocks: int64 [blocks, 5]: part (number of its task in the corpus), first byte in its
            spool file, texts, first of these among all of the side, bytes.
    """

    digests: NDArray[np.uint64]
    blocks: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.digests)


def read_side(stems: Sequence[Path], side: Side) -> SideTexts:
    """Put the parts of a corpus together, in order."""
    digests: list[NDArray[np.uint64]] = [np.zeros((0, 2), np.uint64)]
    blocks: list[NDArray[np.int64]] = [np.zeros((0, 5), np.int64)]
    first = 0
    for number, stem in enumerate(stems):
        with np.load(_file(stem, "npz")) as arrays:
            own = arrays[f"{side}.blocks"]
            digests.append(arrays[f"{side}.digests"])
        if not len(own):
            continue
        starts, texts = own.T
        ends = np.append(starts[1:], spool_file(stem, side).stat().st_size)
        firsts = first + np.cumsum(texts) - texts
        numbers = np.full(len(own), number)
        blocks.append(np.stack((numbers, starts, texts, firsts, ends - starts), axis=1))
        first += int(texts.sum())
    return SideTexts(np.concatenate(digests), np.concatenate(blocks))
