"""Which texts stay: decided once, from the digests of all parts, and written down for everybody."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.cleaning import SIDES, Hit, Removal, Side, refuse_contaminated, summed
from data_pipeline.cleaning.removal import Counts
from data_pipeline.corpus import CorpusConfig
from data_pipeline.disk import disk_errors
from data_pipeline.preparing import state
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.preparing.cleaned import (
    SideTexts,
    part_stem,
    read_side,
    rejected_file,
    removed_file,
    spool_file,
)
from data_pipeline.preparing.duplicates import Documents, Verdict, exact_verdicts, near_verdicts
from data_pipeline.sources import Rejected
from data_pipeline.spool import Block
from data_pipeline.whole_file import opened_whole


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned corpus.

    Attributes:
        config: what it is made of.
        stems: of its parts, in order: ``part_stem``.
        sources: number of the source of each part.
        facts: what the task of each part told.
    """

    config: CorpusConfig
    stems: tuple[Path, ...]
    sources: tuple[int, ...]
    facts: tuple[Facts, ...]


@dataclass(frozen=True, slots=True)
class Decide:
    """Task: decide which texts of all corpora stay.

    Attributes:
        corpora: by name.
        plans: folder for what is decided.
        folder: of the stage.
    """

    corpora: Mapping[str, Cleaned]
    plans: Path
    folder: Path
    name: str = "all"
    weight: int = 1

    def run(self) -> Outcome:
        for name, corpus in self.corpora.items():
            refuse_rejected(corpus.config, corpus.sources, corpus.facts)
            refuse_hits(name, corpus.facts)
        self.plans.mkdir(parents=True, exist_ok=True)
        texts = {n: {s: read_side(c.stems, s) for s in SIDES} for n, c in self.corpora.items()}
        verdicts = self._verdicts(texts)
        removed = self._gather_logs(texts, verdicts)
        facts: Facts = {}
        files: list[Path] = []
        for name, corpus in self.corpora.items():
            facts[name] = {
                side: _described(corpus, side, verdicts[name][side].kept, removed[name][side])
                for side in corpus.config.sides
            }
            _refuse_empty(name, corpus.config, facts[name], self.folder / state.REMOVED)
            for side in corpus.config.sides:
                kept = verdicts[name][side].kept
                files += write_plan(self.plans, name, side, texts[name][side], kept)
        told = {"texts": sum(s["kept"] for c in facts.values() for s in c.values())}
        return Outcome({"sides": facts, "told": told}, tuple(files))

    def _verdicts(
        self, texts: Mapping[str, Mapping[Side, SideTexts]]
    ) -> dict[str, dict[Side, Verdict]]:
        verdicts = exact_verdicts(texts)
        for name, corpus in self.corpora.items():
            near = corpus.config.near_duplicates
            if near is not None:
                verdicts[name] = near_verdicts(verdicts[name], near, corpus.stems)
        return verdicts

    def _gather_logs(
        self,
        texts: Mapping[str, Mapping[Side, SideTexts]],
        verdicts: Mapping[str, Mapping[Side, Verdict]],
    ) -> dict[str, dict[Side, Counts]]:
        """Write down what was no document and what was left out; counts of the latter."""
        stems = {name: corpus.stems for name, corpus in self.corpora.items()}
        rejected = [rejected_file(stem) for own in stems.values() for stem in own]
        with _Log(self.folder / state.REJECTED) as log:
            for path in rejected:
                with path.open("rb") as lines:
                    log.add(lines)
        documents = Documents(stems, texts)
        counts: dict[str, dict[Side, Counts]] = {}
        with _Log(self.folder / state.REMOVED) as log:
            for name, corpus in self.corpora.items():
                for path in filter(Path.exists, map(removed_file, corpus.stems)):
                    with path.open("rb") as lines:
                        log.add(_of_corpus(name, lines))
                counts[name] = {}
                for side in corpus.config.sides:
                    found = documents.removals(name, side, verdicts[name][side])
                    own: Counts = {}
                    counts[name][side] = own
                    log.add(_of_corpus(name, _counted(found, own)))
        return counts


def _of_corpus(name: str, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of JSON objects, with the corpus as their first field."""
    head = f'{{"corpus": {json.dumps(name)}, '.encode()
    return (head + line[1:] for line in lines)


def _counted(removals: Iterable[Removal], counts: Counts) -> Iterator[bytes]:
    for removal in removals:
        reasons = counts.setdefault(removal.step, {})
        reasons[removal.reason] = reasons.get(removal.reason, 0) + 1
        yield removal.line().encode()


class _Log:
    """A file of lines, packed if its name says so; without a line there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._stream: IO[bytes] | gzip.GzipFile | None = None

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(line)

    def _open(self) -> "IO[bytes] | gzip.GzipFile":
        file = self._stack.enter_context(opened_whole(self._path))
        if self._path.suffix != ".gz":
            return file
        # Without its time: the same lines give the same bytes.
        return self._stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))

    def __enter__(self) -> "_Log":
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def refuse_hits(corpus: str, facts: Iterable[Facts]) -> None:
    """DataError when a strict guard has found documents with evaluation texts."""
    told = list(facts)
    found = [(name, Hit(rule, row)) for one in told for name, rule, row in one["contaminated"]]
    refuse_contaminated(corpus, found, sum(one["refused"] for one in told))


def refuse_rejected(config: CorpusConfig, sources: Sequence[int], facts: Sequence[Facts]) -> None:
    """DataError when a source has more rejected records than its config bears."""
    read = dict.fromkeys(sources, 0)
    rejected = dict.fromkeys(sources, 0)
    last: dict[int, Rejected] = {}
    for source, told in zip(sources, facts, strict=True):
        read[source] += told["documents"] + told["rejected"]
        rejected[source] += told["rejected"]
        if told["last_rejected"]:
            last[source] = Rejected(*told["last_rejected"])
            config.sources[source].bear(rejected[source], last[source])
    for source, item in last.items():
        config.sources[source].bear(rejected[source], item, read[source])


def _refuse_empty(
    name: str, config: CorpusConfig, described: Mapping[Side, Mapping[str, Any]], log: Path
) -> None:
    """DataError when a side that it should have holds no text: what became of them all."""
    empty = [side for side in config.sides if not described[side]["kept"]]
    if not empty:
        return
    counts = described["train"]["counts"]
    read = counts["documents_read"]
    if not read:
        msg = f"corpus {name}: its sources hold no document"
        raise DataError(msg)
    lines = [
        f"corpus {name}: nothing is left for {empty[0]}: {_cause(config, empty[0], described)}",
        f"    documents read: {read:,}, empty ones among them: {counts['empty']:,}",
    ]
    for side in config.sides:
        steps = _removed_by_step(described[side])
        left_out = ", ".join(f"{step} {n:,}" for step, n in steps.items()) or "none"
        kept = described[side]["kept"]
        came = kept + sum(steps.values())
        lines.append(f"    {side}: {came:,}; left out: {left_out}; left: {kept:,}")
    if log.exists():
        lines.append(f"{log} names each that was left out, with the reason.")
    raise DataError("\n".join(lines))


def _cause(config: CorpusConfig, side: Side, described: Mapping[Side, Mapping[str, Any]]) -> str:
    if _removed_by_step(described[side]):
        return "all documents of this side were left out"
    if side == "train" or config.split is None:
        return "all documents are empty or held out"
    if config.split.groups is not None:
        return f"not one of the groups in {config.split.groups} occurs in its sources"
    return "its groups are too few for the share of split.held_out: raise it"


def _removed_by_step(described: Mapping[str, Any]) -> dict[str, int]:
    return {step: sum(reasons.values()) for step, reasons in described["removed"].items()}


def _described(
    corpus: Cleaned, side: Side, kept: NDArray[np.bool_], duplicates: Counts
) -> dict[str, Any]:
    """What provenance tells of one side."""

    def total(what: str) -> int:
        return sum(facts[what] for facts in corpus.facts)

    return {
        "changed": summed(facts["changed"] for facts in corpus.facts),
        "removed": summed([*(facts["removed"][side] for facts in corpus.facts), duplicates]),
        "kept": int(kept.sum()),
        "counts": {
            "documents_read": total("documents"),
            "rejected": total("rejected"),
            "empty": total("empty"),
            "on_this_side": len(kept),
            "duplicates_left_out": int(len(kept) - kept.sum()),
        },
    }


def write_plan(
    plans: Path, name: str, side: Side, texts: SideTexts, kept: NDArray[np.bool_]
) -> list[Path]:
    """Write down the blocks of a side that hold a text that stays, and which texts do."""
    some = np.zeros(0, np.bool_)
    if len(texts.blocks):
        some = np.logical_or.reduceat(kept, texts.blocks[:, 3])
    blocks, stay = plan_files(plans, name, side)
    with disk_errors(blocks):
        np.save(blocks, texts.blocks[some])
        np.save(stay, kept)
    return [blocks, stay]


def plan_files(plans: Path, name: str, side: Side) -> tuple[Path, Path]:
    """Where the blocks (int64 [blocks, 5]) and the texts that stay (bool [texts]) are told."""
    return plans / f"{name}.{side}.blocks.npy", plans / f"{name}.{side}.kept.npy"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided of one side of a corpus; small, picklable, read where it is needed.

    Attributes:
        plans: folder of what was decided.
        spool: folder of the cleaned texts.
    """

    plans: Path
    spool: Path
    corpus: str
    side: Side

    @property
    def name(self) -> str:
        """``CORPUS/SIDE``."""
        return f"{self.corpus}/{self.side}"

    def rows(self) -> NDArray[np.int64]:
        """Int64 [blocks, 5]; see ``SideTexts.blocks``."""
        rows: NDArray[np.int64] = np.load(plan_files(self.plans, self.corpus, self.side)[0])
        return rows

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[Block, Any]]:
        """Some of its blocks, and which of the texts of each stay: bool [block.texts]."""
        blocks, stay = plan_files(self.plans, self.corpus, self.side)
        kept = np.load(stay, mmap_mode="r")
        for part, start, texts, at, _ in np.load(blocks, mmap_mode="r")[first:stop].tolist():
            path = spool_file(part_stem(self.spool, self.corpus, part), self.side)
            yield Block(path, start, texts), kept[at : at + texts]

    def texts(self) -> Iterator[str]:
        """The texts that stay, in order."""
        for block, kept in self.blocks():
            yield from compress(block.read(), kept)
