"""Evaluation rows in pretraining text: which corpora of a recipe are not guarded against them.

Told from the recipe alone: a corpus that a pretraining stage trains on must be decontaminated
against the dev and test rows of every task that is fine-tuned or probed, or hold the task's groups
out. No guard looks at the side that is held out: whoever trains on that may train on such rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from configs.stage import STAGE_PREFIX, StageConfig, split_location
from data_pipeline.corpus import CorpusConfig
from data_pipeline.prepare import PrepareStage
from downstream.finetune import FinetuneStage
from downstream.pretraining import ProbedPretraining
from engine.pretraining import PretrainStage
from launcher.links import Problem


@dataclass(frozen=True, slots=True)
class _TaskFiles:
    """What a task folder holds that must not be trained on.

    Attributes:
        said: who evaluates on the task.
        rows: locations of the dev and test rows.
        groups: location of the names of their groups.
    """

    said: str
    rows: tuple[str, str]
    groups: str

    @classmethod
    def of(cls, by: list[str], folder: str) -> "_TaskFiles":
        said = f"{' and '.join(by)} evaluate{'s' if len(by) == 1 else ''}"
        rows = (_joined(folder, "dev.jsonl"), _joined(folder, "test.jsonl"))
        return cls(said, rows, _joined(folder, "groups.json"))

    def missing_in(self, corpus: CorpusConfig) -> tuple[str, ...]:
        """The files that a corpus is not guarded against."""
        split = corpus.split
        if split is not None and split.groups and _same(split.groups) == _same(self.groups):
            return ()
        against = corpus.decontaminate.against if corpus.decontaminate else ()
        known = set(map(_same, against))
        return tuple(row for row in self.rows if _same(row) not in known)


def leaks(stages: Mapping[str, StageConfig]) -> Iterator[Problem]:
    """One problem for each corpus that is trained on without a guard against a task's rows."""
    tasks = [_TaskFiles.of(by, folder) for folder, by in _evaluated(stages)]
    for (prepare, name, side), readers in _trained_on(stages).items():
        stage = stages[prepare]
        if not isinstance(stage, PrepareStage) or name not in stage.corpora:
            continue
        if side == "held_out" and tasks:
            message = (
                f"{', '.join(readers)} trains on its held-out side, from which no evaluation rows "
                "are taken out; train on corpora/.../train"
            )
            yield Problem(("stages", prepare, "corpora", name), message)
            continue
        for task in tasks:
            missing = task.missing_in(stage.corpora[name])
            if missing:
                guard = f"decontaminate: {{against: [{', '.join(missing)}]}}"
                message = (
                    f"{', '.join(readers)} trains on this corpus, and {task.said} on "
                    f"rows that it may hold; add {guard}, or split: {{groups: {task.groups}}}"
                )
                yield Problem(("stages", prepare, "corpora", name), message)


def _evaluated(stages: Mapping[str, StageConfig]) -> list[tuple[str, list[str]]]:
    """Each task folder, and who evaluates on it: stages that fine-tune, and probes of others.

    By what a probe finds a checkpoint may be chosen, or a stage ended.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for name, stage in stages.items():
        tasks: list[tuple[str, str]] = []
        if isinstance(stage, FinetuneStage):
            tasks = [(stage.task, name)]
        elif isinstance(stage, ProbedPretraining):
            tasks = [
                (asked.task, f"probe {probe} of {name}") for probe, asked in stage.probes.items()
            ]
        for folder, by in tasks:
            found.setdefault(_same(folder), (folder, []))[1].append(by)
    return list(found.values())


def _trained_on(stages: Mapping[str, StageConfig]) -> dict[tuple[str, str, str], list[str]]:
    """(prepare stage, corpus, side) -> the pretraining stages that train on it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, stage in stages.items():
        if not isinstance(stage, PretrainStage):
            continue
        for source in stage.data.sources.values():
            prepare, rest = split_location(source.shards)
            parts = PurePosixPath(rest).parts
            if prepare is not None and len(parts) == 3 and parts[0] == "corpora":
                readers = found.setdefault((prepare, parts[1], parts[2]), [])
                readers.extend([name] if name not in readers else [])
    return found


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _same(location: str) -> str:
    """Two spellings of one location become one."""
    stage, rest = split_location(location)
    path = str(PurePosixPath(rest))
    return path if stage is None else f"{STAGE_PREFIX}{stage}/{path}"
