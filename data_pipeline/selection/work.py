"""The work of a selection: draw a sample, learn from it, judge every document, take the best."""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from configs.errors import DataError
from data_pipeline.meter import metered
from data_pipeline.randomness import keyed
from data_pipeline.selection.outcome import Choice, Judged
from data_pipeline.selection.passes import (
    Drawn,
    DrawTask,
    JudgeTask,
    Limits,
    TakeTask,
    draw_part,
    draw_texts,
    judge_part,
    save,
    take_part,
)
from data_pipeline.sources import DocumentSource, JsonlSource, Part
from data_pipeline.whole_file import opened_whole, write_whole

if TYPE_CHECKING:
    from configs.stage import StageContext
    from data_pipeline.parallel import Workers
    from data_pipeline.selection.stage import SelectStage

SELECTED = "selected.jsonl"
RESULTS = "results.json"
READ = "read.json"
BLOCK = 1 << 20
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part, and the source that it is of."""

    number: int
    source: DocumentSource
    part: Part


@dataclass(frozen=True, slots=True)
class Work:
    """One run of the stage."""

    stage: "SelectStage"
    context: "StageContext"
    workers: "Workers"
    pieces: Sequence[Piece]
    scorer: Path

    def run(self, stamps: dict[str, list[int | None]]) -> str:
        """Write what is chosen and the numbers; the digest of the numbers."""
        target, target_documents = self._read_target()
        background, counts, rejected = self._draw()
        self.scorer.parent.mkdir(parents=True, exist_ok=True)
        save(self.stage.method.fit(target, background, self.context.seed), self.scorer)
        judged = self._judge(counts)
        ranked = self.stage.keep.choose(judged.scores, judged.characters)
        choice = Choice(judged, ranked, self.context.seed)
        digest, examples = self._take(choice)
        names = [source.name for source in self.stage.sources]
        results = {
            "kind": self.stage.kind,
            "method": self.stage.method.model_dump(),
            "keep": self.stage.keep.model_dump(exclude_none=True),
            "target": {"documents": target_documents, "learnt_from": len(target)},
            "background": {"learnt_from": len(background)},
            "judged_characters": self.stage.judged_characters,
            "rejected": rejected,
            **choice.describe(names),
            "examples": examples,
            "sha256": digest,
        }
        content = (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(self.context.folder / READ, json.dumps(stamps).encode())
        write_whole(self.context.folder / RESULTS, content)
        return hashlib.sha256(content).hexdigest()

    def _limits(self, drawn: int) -> Limits:
        key = keyed(self.context.seed, "select")
        return Limits(drawn, self.stage.judged_characters, key)

    def _read_target(self) -> tuple[list[str], int]:
        count = 0

        def texts() -> Iterator[str]:
            nonlocal count
            for location in self.stage.target:
                for document in JsonlSource(path=location).documents(self.context.locate):
                    count += 1
                    yield document.text

        drawn = draw_texts(texts(), self._limits(self.stage.target_documents))
        if not drawn:
            msg = f"select: no text in the target ({', '.join(self.stage.target)})"
            raise DataError(msg)
        return drawn, count

    def _draw(self) -> tuple[list[str], list[int], int]:
        """A random sample of the sources, documents of each part, and how many are none."""
        limits = self._limits(self.stage.background_documents)
        tasks = [DrawTask(piece.part, at, limits) for at, piece in enumerate(self.pieces)]
        sample: list[Drawn] = []
        counts: list[int] = []
        rejected = [0] * len(self.stage.sources)
        read = [0] * len(self.stage.sources)
        lasts = {}
        found = _metered(self.workers.map(draw_part, tasks), len(tasks), "select: reading")
        for piece, drawn in zip(self.pieces, found, strict=True):
            sample = heapq.nsmallest(limits.drawn, [*sample, *drawn.sample])
            counts.append(drawn.documents)
            rejected[piece.number] += drawn.rejected
            read[piece.number] += drawn.rejected + drawn.documents
            if drawn.last is not None:
                lasts[piece.number] = drawn.last
                piece.source.bear(rejected[piece.number], drawn.last)
        for number, last in lasts.items():
            self.stage.sources[number].bear(rejected[number], last, read[number])
        if not any(counts):
            msg = "select: the sources have no document"
            raise DataError(msg)
        return [text for _, text in sample], counts, sum(rejected)

    def _judge(self, counts: Sequence[int]) -> Judged:
        method, characters = self.stage.method, self.stage.judged_characters
        tasks = [JudgeTask(piece.part, method, self.scorer, characters) for piece in self.pieces]
        parts = list(_metered(self.workers.map(judge_part, tasks), len(tasks), "select: judging"))
        found = [len(part.scores) for part in parts]
        if found != list(counts):
            msg = (
                "select: the sources changed while they were read; keep their files as they are, "
                "and run again"
            )
            raise DataError(msg)
        return Judged(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.characters for part in parts]),
            np.append(0, np.cumsum(found)),
            np.array([piece.number for piece in self.pieces]),
        )

    def _take(self, choice: Choice) -> tuple[str, dict[str, Any]]:
        """Write the chosen documents; the file's sha256, and some documents to look at."""
        shown = choice.shown()
        digest = hashlib.sha256()
        known: dict[int, dict[str, Any]] = {}
        tasks = dict(_take_tasks(choice, self.pieces, shown, self.context.folder))
        results = self.workers.map(take_part, tasks.values())
        taken = _metered(results, len(tasks), "select: writing")
        with opened_whole(self.context.folder / SELECTED) as file:
            for (number, task), described in zip(tasks.items(), taken, strict=True):
                with task.target.open("rb") as part:
                    while block := part.read(BLOCK):
                        file.write(block)
                        digest.update(block)
                task.target.unlink()
                known |= _described(described, int(choice.judged.starts[number]), choice)
        examples = {name: [known[at] for at in documents] for name, documents in shown.items()}
        return digest.hexdigest(), examples


def _metered(parts: Iterator[Item], number: int, title: str) -> Iterator[Item]:
    return metered(parts, [1] * number, title, " parts")


def clear(folder: Path) -> None:
    """Take away what a run left that was killed."""
    for left in folder.glob(f".{SELECTED}.*.tmp"):
        left.unlink()


def _take_tasks(
    choice: Choice, pieces: Sequence[Piece], shown: dict[str, list[int]], folder: Path
) -> Iterator[tuple[int, TakeTask]]:
    """Of each part with something to take or to show: its number, and what to do."""
    judged = choice.judged
    kept = np.sort(choice.ranked)
    described = np.unique(np.concatenate([np.array(at, np.int64) for at in shown.values()]))
    bounds = np.searchsorted(kept, judged.starts)
    for number, piece in enumerate(pieces):
        start, stop = judged.starts[number : number + 2].tolist()
        own = kept[bounds[number] : bounds[number + 1]]
        wanted = described[(described >= start) & (described < stop)]
        if own.size or wanted.size:
            told = (wanted - start).tolist()
            scores = judged.scores[own]
            target = folder / f".{SELECTED}.part-{number}.tmp"
            task = TakeTask(piece.part, stop - start, own - start, scores, told, target)
            yield number, task


def _described(
    shown: dict[int, dict[str, str]], start: int, choice: Choice
) -> dict[int, dict[str, Any]]:
    scores = choice.judged.scores
    return {
        start + at: {"score": round(float(scores[start + at]), 6), **values}
        for at, values in shown.items()
    }
