"""Task-driven data selection: of given sources, the documents that are most like a target.

The sources are read three times: to draw a sample that is learnt from, to judge every document, and
to take the best ones out. Sixteen bytes a document are kept in memory, and the sample.
"""

import json
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from configs.errors import DataError
from configs.stage import StageConfig, StageContext
from data_pipeline.selection import AnyMethod
from data_pipeline.selection.keep import Keep
from data_pipeline.sources import JsonlSource, Source

if TYPE_CHECKING:
    from data_pipeline.selection.work import Piece

READ = "read.json"
SCORER = ".scorer"
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
        from data_pipeline.parallel import Workers
        from data_pipeline.selection.work import Work, clear

        for source in self._target():
            _refuse_held_back(source, context)
        stamps = self._stamps(context)
        scorer = context.folder / SCORER
        clear(context.folder)
        try:
            with Workers(self.processes) as workers:
                work = Work(self, context, workers, self._parts(context), scorer)
                return work.run(stamps)
        finally:
            scorer.unlink(missing_ok=True)
            clear(context.folder)

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

    def _parts(self, context: StageContext) -> list["Piece"]:
        from data_pipeline.selection.work import Piece

        return [
            Piece(number, source, part)
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


def _refuse_held_back(source: JsonlSource, context: StageContext) -> None:
    for file in source.files(context.locate):
        name = file.name.rpartition("/")[2]
        if any(name == held or name.startswith(f"{held}.") for held in HELD_BACK):
            msg = (
                f"stage {context.name}: target {source.path}: {file} holds rows that models are "
                "judged by, and they must have no say in what is trained on; name train.jsonl"
            )
            raise DataError(msg)
