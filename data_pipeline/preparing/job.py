"""A prepare stage as phases of tasks: every participant derives the same ones from the records."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError, RecipeError
from configs.stage import StageContext
from data_pipeline.cleaning import CleanTask, Guard, Side, Splitter
from data_pipeline.corpus import CorpusConfig
from data_pipeline.parallel import Workers
from data_pipeline.preparing import inputs
from data_pipeline.preparing.board import Board, Facts, Phase
from data_pipeline.preparing.chunks import EncodeRun, FindBorders, runs_of_blocks
from data_pipeline.preparing.cleaned import CleanSource, part_stem
from data_pipeline.preparing.crew import Crew, perform
from data_pipeline.preparing.decide import Cleaned, Decide, Plan, refuse_hits
from data_pipeline.preparing.shards import AssembleShard, WriteManifest
from data_pipeline.preparing.state import State, output_folder
from data_pipeline.preparing.steps import (
    Begin,
    BuildGuard,
    BuildTokenizer,
    Finish,
    remove_boards,
    remove_leftovers,
)
from data_pipeline.preparing.values import from_json
from data_pipeline.shards import TokenizerRecord
from data_pipeline.shards.manifest import ShardRecord
from data_pipeline.sources import Rejected
from data_pipeline.tokenization.block import one_thread

if TYPE_CHECKING:
    from data_pipeline.prepare import PrepareStage

BOARDS = ".prepare"
PHASES = (
    "read",
    "begin",
    "guards",
    "clean",
    "decide",
    "tokenizer",
    "encode",
    "borders",
    "shards",
    "manifests",
    "finish",
)
SINGLE = frozenset({"begin", "decide", "tokenizer", "finish"})
"""Phases of one task."""
_TOKEN_BYTES = 3


class Job:
    """One run of a stage, as a participant sees it.

    A phase's tasks are derived from the records of the phases before it, so these must be done.
    """

    def __init__(self, stage: "PrepareStage", context: StageContext) -> None:
        self.stage = stage
        self.context = context
        self.boards = context.folder / BOARDS

    def phase(self, name: str) -> Phase:
        """A phase with all its tasks."""
        phase: Phase = getattr(self, f"_{name}")
        return phase

    def board(self, name: str) -> Board:
        """Where the records of a phase lie."""
        folder = self._reading_folder if name == "read" else self._work_folder
        return Board(folder, self.context.folder)

    @property
    def fingerprint(self) -> str:
        """Of a job whose phases are all done."""
        found: str = self._only("finish")["fingerprint"]
        return found

    @cached_property
    def _inputs(self) -> list[inputs.Input]:
        return inputs.list_inputs(self.stage, self.context.locate)

    @cached_property
    def _reading_folder(self) -> Path:
        digest = inputs.listing_digest(self.context.key, self._inputs)
        return self.boards / f"read-{digest[:16]}"

    @cached_property
    def _work_folder(self) -> Path:
        known = [(place, file["digest"]) for place, files in self._files.items() for file in files]
        digest = hashlib.sha256(f"{self.context.key} {known}".encode()).hexdigest()
        return self.boards / f"work-{digest[:16]}"

    @cached_property
    def _reading(self) -> list[inputs.ReadInput]:
        known = State.read(self.context.folder, self.context.key).files
        return inputs.reading_tasks(self._inputs, known, self.context)

    @cached_property
    def _read(self) -> Phase:
        return Phase("read", "looking through the files", self._reading, "B")

    @cached_property
    def _read_facts(self) -> list[Facts]:
        return list(self.board("read").all_facts(self._read))

    @cached_property
    def _files(self) -> dict[str, list[Any]]:
        return inputs.files_by_place(self._inputs, self._reading, self._read_facts)

    @cached_property
    def _begin(self) -> Phase:
        current = frozenset({self._reading_folder.name, self._work_folder.name})
        return Phase("begin", "", [Begin(self.context, self._files, self.boards, current)])

    @cached_property
    def _made(self) -> dict[str, str]:
        """Outputs of an earlier run that are still good."""
        made: dict[str, str] = self._only("begin")["made"]
        return made

    @property
    def _spool(self) -> Path:
        return self._work_folder / "spool"

    @cached_property
    def _parts(self) -> dict[str, list[tuple[int, int, Any]]]:
        """Of each corpus: (number of the source, bytes, part as JSON) of each part, in order."""
        found: dict[str, list[tuple[int, int, Any]]] = {name: [] for name in self.stage.corpora}
        places = {
            inputs.source_place(name, number): (name, number)
            for name, corpus in self.stage.corpora.items()
            for number in range(len(corpus.sources))
        }
        for task, facts in zip(self._reading, self._read_facts, strict=True):
            place = task.name.rpartition(".")[0]
            if place in places:
                name, number = places[place]
                for weight, part in zip(facts["weights"], facts["parts"], strict=True):
                    found[name].append((number, weight, part))
        return found

    @cached_property
    def _guards(self) -> Phase:
        tasks = [
            BuildGuard(name, corpus.decontaminate, self.context, self._guard(name))
            for name, corpus in self.stage.corpora.items()
            if corpus.decontaminate
        ]
        return Phase("guards", "", tasks)

    def _guard(self, name: str) -> Path:
        return self._work_folder / "guards" / f"{name}.npz"

    @cached_property
    def _clean(self) -> Phase:
        tasks = [task for name in self.stage.corpora for task in self._clean_tasks(name)]
        return Phase("clean", "cleaning", tasks, "B", _Budget(self.stage.corpora))

    def _clean_tasks(self, name: str) -> Iterator[CleanSource]:
        corpus = self.stage.corpora[name]
        locate = self.context.locate
        splitter = corpus.split.build(locate, self.context.seed) if corpus.split else Splitter(0)
        guarded = corpus.decontaminate
        guard = Guard(self._guard(name), guarded.strict) if guarded else None
        for at, (number, weight, part) in enumerate(self._parts[name]):
            stem = part_stem(self._spool, name, at)
            most = corpus.sources[number].rejected_at_most
            filters, near = corpus.filters, corpus.near_duplicates
            clean = CleanTask(from_json(part), splitter, stem, most, filters, guard, near)
            yield CleanSource(f"{name}.{at:06d}", weight, name, number, clean)

    @cached_property
    def _decide(self) -> Phase:
        corpora = {name: self._cleaned(name) for name in self.stage.corpora}
        task = Decide(corpora, self._plans, self.context.folder)
        return Phase("decide", "deciding what stays", [task])

    def _cleaned(self, name: str) -> Cleaned:
        parts = self._parts[name]
        stems = (part_stem(self._spool, name, at) for at in range(len(parts)))
        board = self.board("clean")
        facts = (board.facts("clean", f"{name}.{at:06d}") for at in range(len(parts)))
        sources = tuple(number for number, _, _ in parts)
        return Cleaned(self.stage.corpora[name], tuple(stems), sources, tuple(facts))

    @property
    def _plans(self) -> Path:
        return self._work_folder / "plans"

    def _plan(self, name: str, side: Side) -> Plan:
        return Plan(self._plans, self._spool, name, side)

    @cached_property
    def _tokenizer(self) -> Phase:
        task = BuildTokenizer(
            self.stage.tokenizer,
            self.context,
            {name: self._plan(name, "train") for name in self.stage.corpora},
            output_folder(self.context.folder, "tokenizer"),
            self._work_folder / "tokenizer.building",
            "tokenizer" in self._made,
        )
        return Phase("tokenizer", "tokenizer", [task])

    @cached_property
    def _record(self) -> TokenizerRecord:
        return TokenizerRecord.model_validate(self._only("tokenizer")["record"])

    @cached_property
    def _sides(self) -> list[Plan]:
        """The sides of all corpora, in order."""
        return [
            self._plan(name, side)
            for name, corpus in self.stage.corpora.items()
            for side in corpus.sides
        ]

    @cached_property
    def _unwritten(self) -> list[Plan]:
        return [plan for plan in self._sides if plan.name not in self._made]

    @cached_property
    def _runs(self) -> dict[str, list[EncodeRun]]:
        """The tasks that tokenise each side that is to be written."""
        found: dict[str, list[EncodeRun]] = {}
        for plan in self._unwritten:
            folder = self._work_folder / "chunks" / f"{plan.corpus}.{plan.side}"
            found[plan.name] = [
                EncodeRun(
                    f"{plan.corpus}.{plan.side}.{at:06d}",
                    size,
                    plan,
                    first,
                    stop,
                    folder / f"{at:06d}",
                    output_folder(self.context.folder, "tokenizer"),
                    self._record.vocabulary_size,
                )
                for at, (first, stop, size) in enumerate(runs_of_blocks(plan))
            ]
        return found

    @property
    def _encoding(self) -> str:
        # Another tokenizer, as a name on a hub may come to stand for, makes other tokens.
        return f"encode-{self._record.sha256[:16]}"

    @cached_property
    def _encode(self) -> Phase:
        tasks = [run for runs in self._runs.values() for run in runs]
        return Phase(self._encoding, "tokenising", tasks, "B")

    def _told(self, plan: Plan) -> list[Facts]:
        """What the tasks that tokenised a side tell."""
        board = self.board("encode")
        return [board.facts(self._encoding, run.name) for run in self._runs[plan.name]]

    @cached_property
    def _borders(self) -> Phase:
        tasks = [
            FindBorders(
                f"{plan.corpus}.{plan.side}",
                tuple(run.stem for run in self._runs[plan.name]),
                tuple(self._told(plan)),
                self.stage.shard_tokens,
                output_folder(self.context.folder, plan.name),
            )
            for plan in self._unwritten
        ]
        return Phase("borders", "", tasks)

    @cached_property
    def _shards(self) -> Phase:
        tasks = [task for plan in self._unwritten for task in self._shard_tasks(plan)]
        return Phase("shards", "writing shards", tasks, "B")

    def _shard_tasks(self, plan: Plan) -> Iterator[AssembleShard]:
        found = self.board("borders").facts("borders", f"{plan.corpus}.{plan.side}")["borders"]
        runs, told = self._runs[plan.name], self._told(plan)
        for number, (begin, end) in enumerate(pairwise(found)):
            chunks = slice(begin[0], end[0] + 1)
            tokens = sum(facts["tokens"] for facts in told[chunks])
            yield AssembleShard(
                f"{plan.corpus}.{plan.side}.{number:05d}",
                _TOKEN_BYTES * tokens,
                number,
                tuple(run.stem for run in runs[chunks]),
                (0, begin[1], begin[2]),
                (end[0] - begin[0], end[1], end[2]),
                output_folder(self.context.folder, plan.name),
                self._record.vocabulary_size,
            )

    @cached_property
    def _manifests(self) -> Phase:
        tasks = [self._manifest_task(plan) for plan in self._unwritten]
        return Phase("manifests", "", tasks)

    def _manifest_task(self, plan: Plan) -> WriteManifest:
        board = self.board("shards")
        shards = (
            ShardRecord.model_validate(board.facts("shards", task.name)["shard"])
            for task in self._shard_tasks(plan)
        )
        name = f"{plan.corpus}.{plan.side}"
        target = output_folder(self.context.folder, plan.name)
        return WriteManifest(name, target, self._record, tuple(shards), self._provenance(plan))

    def _provenance(self, plan: Plan) -> dict[str, Any]:
        """Where the texts of a side come from and what was left out, with counts."""
        corpus = self.stage.corpora[plan.corpus]
        decided = self._only("decide")["sides"][plan.corpus][plan.side]
        told = self._told(plan)
        texts, characters, sequences = (
            sum(facts[what] for facts in told) for what in ("texts", "characters", "sequences")
        )
        counts = {"without_tokens": texts - sequences, "characters": characters}
        digests = [
            inputs.source_digest(self._files[inputs.source_place(plan.corpus, number)])
            for number in range(len(corpus.sources))
        ]
        guarded = self._other_files(inputs.guard_place(plan.corpus))
        return {
            "corpus": plan.corpus,
            "side": plan.side,
            "seed": self.context.seed,
            **corpus.described(digests, inputs.source_digest(guarded)),
            "changed": decided["changed"],
            "removed": decided["removed"],
            "counts": decided["counts"] | counts,
        }

    def _other_files(self, place: str) -> list[Facts]:
        return [f for at, files in self._files.items() if at.startswith(place) for f in files]

    @cached_property
    def _finish(self) -> Phase:
        board = self.board("manifests")
        made = {"tokenizer": self._record.sha256} | {
            plan.name: self._made.get(plan.name)
            or board.facts("manifests", f"{plan.corpus}.{plan.side}")["digest"]
            for plan in self._sides
        }
        return Phase("finish", "", [Finish(self.context, self._files, made)])

    def _only(self, phase: str) -> Facts:
        return self.board(phase).facts(phase, "all")


class _Budget:
    """Stops the cleaning once a source has more rejected records than its config bears.

    So does what a strict guard has found. Of the limits only one that is a
    number: which share was rejected is known at the end.
    """

    def __init__(self, corpora: Mapping[str, CorpusConfig]) -> None:
        self._corpora = corpora
        self._rejected: Counter[tuple[str, int]] = Counter()

    def __call__(self, task: CleanSource, facts: Facts) -> None:
        refuse_hits(task.corpus, [facts])
        if facts["rejected"]:
            place = (task.corpus, task.source)
            self._rejected[place] += facts["rejected"]
            source = self._corpora[task.corpus].sources[task.source]
            source.bear(self._rejected[place], Rejected(*facts["last_rejected"]))


def prepare(stage: "PrepareStage", context: StageContext) -> str:
    """Run all phases with this process and those it starts, together with other participants.

    Returns:
        the fingerprint of what was made.
    """
    job = Job(stage, context)
    if context.share.index == 0:
        remove_leftovers(context.folder)
    found = finished(stage, context)
    if found is not None:
        if context.share.index == 0:
            remove_boards(job.boards)
        return found
    crew = Crew(job.boards / "participants", context.share)
    try:
        with Workers(stage.processes, one_thread) as workers, crew:
            for name in PHASES:
                perform(job.board(name), job.phase(name), context.share, workers)
                crew.wait_for(job.board(name), job.phase(name))
            fingerprint = job.fingerprint
    except (DataError, RecipeError):
        # Other files or another recipe will be needed, and so another board.
        if context.share.count == 1:
            remove_boards(job.boards)
        raise
    if context.share.index == 0:
        crew.wait_until_all_have_left()
        remove_boards(job.boards)
    return fingerprint


def finished(stage: "PrepareStage", context: StageContext) -> str | None:
    """Fingerprint of what an earlier run has made of the same files, if all of it is there."""
    state = State.read(context.folder, context.key)
    if not state.made or state.intact(context.folder) != state.made:
        return None
    return None if change(stage, context) else state.fingerprint


def change(stage: "PrepareStage", context: StageContext) -> str | None:
    """What has changed in the files since the stage was finished; None if nothing has."""
    state = State.read(context.folder, context.key)
    return inputs.change(stage, context.locate, state.files) if state.made else None
