"""Task-driven data selection: of given sources, the documents that are most like a target.

The sources are read three times: to draw a sample that is learnt from, to judge every document, and
to take the best ones out. Sixteen bytes a document are kept in memory, and the sample.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from configs.errors import DataError
from configs.stage import StageConfig, StageContext
from data_pipeline.meter import metered
from data_pipeline.parallel import Workers
from data_pipeline.randomness import keyed
from data_pipeline.selection import AnyMethod
from data_pipeline.selection.keep import Keep
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
from data_pipeline.sources import DocumentSource, JsonlSource, Part, Source
from data_pipeline.whole_file import opened_whole, write_whole

SELECTED = "selected.jsonl"
RESULTS = "results.json"
READ = "read.json"
SCORER = ".scorer"
BLOCK = 1 << 20
Item = TypeVar("Item")
HELD_BACK = ("dev.jsonl", "test.jsonl")


class SelectStage(StageConfig):
    """Writes the documents of the sources that are most like the target to ``selected.jsonl``.

    One object a line, in the order of the sources: id, group, text, score, metadata. A corpus
    reads it as a source: ``{name: jsonl, path: stage:NAME/selected.jsonl, fields: {id: id, group:
    group}}``. The numbers are in ``results.json``.

    Attributes:
        sources: where documents come from.
        target: locations of jsonl files whose field ``text`` is what documents are to be like: a
            task's train.jsonl, or texts of a domain. A task's dev and test rows must have no say
            in what is trained on; files named dev.jsonl or test.jsonl are refused.
        method: how documents are judged.
        keep: how much is kept.
        target_documents: at most so many of the target are learnt from, drawn at random.
        background_documents: at most so many of the sources are learnt from, drawn at random.
        judged_characters: a document is learnt from and judged by so many of its first ones.
        processes: how many share the work.
    """

    UNKEYED: ClassVar[frozenset[str]] = frozenset({"processes"})

    kind: Literal["select"] = "select"
    sources: list[Source] = Field(min_length=1)
    target: list[str] = Field(min_length=1)
    method: AnyMethod
    keep: Keep
    target_documents: int = Field(default=20_000, ge=1)
    background_documents: int = Field(default=20_000, ge=1)
    judged_characters: int = Field(default=20_000, ge=1)
    processes: int = Field(default=1, ge=1, le=256)

    def check(self, context: StageContext) -> None:
        """Missing files, and a target that holds a task's dev or test rows."""
        for target in self._target():
            if all(map(context.is_made, target.locations)):
                _refuse_held_back(target, context)
        for source in (*self.sources, *self._target()):
            if all(map(context.is_made, source.locations)):
                source.check(context.locate)

    def run(self, context: StageContext) -> str:
        """Select; the fingerprint is of what was selected and of the numbers."""
        for source in self._target():
            _refuse_held_back(source, context)
        stamps = self._stamps(context)
        scorer = context.folder / SCORER
        _clear(context.folder)  # what a run left that was killed
        try:
            with Workers(self.processes) as workers:
                work = _Work(self, context, workers, self._parts(context), scorer)
                return work.run(stamps)
        finally:
            scorer.unlink(missing_ok=True)
            _clear(context.folder)

    def outdated(self, context: StageContext) -> str | None:
        """Whether its own files changed since: their names, sizes or times."""
        try:
            before = json.loads((context.folder / READ).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return f"{context.folder / READ} is missing"
        now = self._stamps(context)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return f"{name} was changed, added or removed"
        return None

    def _target(self) -> list[JsonlSource]:
        return [JsonlSource(path=location) for location in self.target]

    def _parts(self, context: StageContext) -> list["_Piece"]:
        return [
            _Piece(number, source, part)
            for number, source in enumerate(self.sources)
            for part in source.parts(context.locate)
        ]

    def _stamps(self, context: StageContext) -> dict[str, list[int | None]]:
        """Size and time of each file, of a remote one the size."""
        stamps: dict[str, list[int | None]] = {}
        for source in (*self.sources, *self._target()):
            for file in source.files(context.locate):
                time = file.path.stat().st_mtime_ns if file.path else None
                stamps[str(file)] = [file.size(), time]
        return stamps


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part, and the source that it is of."""

    number: int
    source: DocumentSource
    part: Part


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of the stage."""

    stage: SelectStage
    context: StageContext
    workers: Workers
    pieces: Sequence[_Piece]
    scorer: Path

    def run(self, stamps: dict[str, list[int | None]]) -> str:
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
        characters = self.stage.judged_characters
        tasks = [JudgeTask(piece.part, self.scorer, characters) for piece in self.pieces]
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


def _clear(folder: Path) -> None:
    for left in folder.glob(f".{SELECTED}.*.tmp"):
        left.unlink()


def _take_tasks(
    choice: Choice, pieces: Sequence[_Piece], shown: dict[str, list[int]], folder: Path
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


def _refuse_held_back(source: JsonlSource, context: StageContext) -> None:
    for file in source.files(context.locate):
        name = file.name.rpartition("/")[2]
        if any(name == held or name.startswith(f"{held}.") for held in HELD_BACK):
            msg = (
                f"stage {context.name}: target {source.path}: {file} holds rows that models are "
                "judged by, and they must have no say in what is trained on; name train.jsonl"
            )
            raise DataError(msg)
