"""The offline stage: sources -> cleaning -> split -> tokenizer -> shards of every corpus.

What comes out does not depend on the number of processes: they get pieces of the sources whose
borders the sources set, and their results are taken in order.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from configs.errors import DataError, ResourceError
from configs.stage import StageConfig, StageContext
from data_pipeline.cleaning import CleanTask, Side, Splitter, clean_part, read_excluded
from data_pipeline.cleaning.exclude import digest_of, sources_of
from data_pipeline.corpus import Corpus, CorpusConfig, keep_firsts, rejected_lines
from data_pipeline.meter import metered
from data_pipeline.parallel import Workers
from data_pipeline.shards import Manifest, ShardedDataset, ShardWriter, TokenizerRecord
from data_pipeline.shards.write import SHARD_TOKENS
from data_pipeline.tokenization import Tokenizer, tokenizer_record, tokenizer_sha256
from data_pipeline.tokenization.block import EncodeTask, encode_block, one_thread

SPOOL = ".spool"
STATE = "prepared.json"
REJECTED = "rejected.jsonl"

CorpusName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]


class PrepareStage(StageConfig):
    """Makes ``tokenizer`` and ``corpora/NAME/train`` (and ``held_out``) in its folder.

    Attributes:
        tokenizer: a pretrained one, or one to be trained on corpora of this stage.
        corpora: by name. A text that is held out in one corpus is trained on in none; of
            equal texts of one corpus the first stays.
        processes: how many share the work.
        shard_tokens: a shard is closed by the document that brings it to so many tokens.
    """

    UNKEYED: ClassVar[frozenset[str]] = frozenset({"processes"})

    VERSION: ClassVar[int] = 2

    kind: Literal["prepare"] = "prepare"
    tokenizer: Tokenizer
    corpora: dict[CorpusName, CorpusConfig] = Field(min_length=1)
    processes: int = Field(default=1, ge=1, le=256)
    shard_tokens: int = Field(default=SHARD_TOKENS, ge=1)

    @model_validator(mode="after")
    def _trained_on_own_corpora(self) -> "PrepareStage":
        for name in self.tokenizer.trained_on:
            if name not in self.corpora:
                known = ", ".join(self.corpora)
                msg = f"tokenizer.corpora: no corpus '{name}' in this stage; it has {known}"
                raise ValueError(msg)
        return self

    def check(self, context: StageContext) -> None:
        """Missing files, packages and groups; what earlier stages will make is not looked for."""
        for location in self.tokenizer.locations:
            if context.is_made(location):
                context.locate(location)
        for corpus in self.corpora.values():
            for source in (*corpus.sources, *sources_of(corpus.exclude)):
                if all(map(context.is_made, source.locations)):
                    source.check(context.locate)
            if corpus.split and all(map(context.is_made, corpus.split.locations)):
                corpus.split.build(context.locate, context.seed)

    def run(self, context: StageContext) -> str:
        """Make everything; the fingerprint covers the tokenizer and every byte of the shards."""
        digests = {
            name: [
                *(source.digest(context.locate) for source in corpus.sources),
                digest_of(corpus.exclude, context.locate),
            ]
            for name, corpus in self.corpora.items()
        }
        state = _State.open(context, digests)
        if state.fingerprint and self._is_whole(context, state):
            return state.fingerprint
        if not state.made:
            _clear(context.folder)
        spool = context.folder / SPOOL
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True)
        try:
            return self._make(context, state, spool)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            free = shutil.disk_usage(context.folder).free
            msg = f"{error.filename or context.folder}: no space left ({free:,} bytes); make room"
            raise ResourceError(msg) from error
        finally:
            shutil.rmtree(spool, ignore_errors=True)

    def _make(self, context: StageContext, state: "_State", spool: Path) -> str:
        with Workers(self.processes, one_thread) as workers:
            corpora = {
                name: Corpus(name, config, state.sources[name][:-1], state.sources[name][-1])
                for name, config in self.corpora.items()
            }
            self._clean(context, workers, spool, corpora)
            keep_firsts(corpora.values())
            for corpus in corpora.values():
                corpus.refuse_empty()
            record = self._build_tokenizer(context, state, spool, corpora)
            for name, corpus in corpora.items():
                for side in corpus.config.sides:
                    work = _Writing(context, corpus, side, record, self.shard_tokens)
                    if not state.has(f"{name}/{side}", _digest_of(work.target)):
                        state.note(f"{name}/{side}", work.write(workers).digest)
        return state.finish()

    def _clean(
        self, context: StageContext, workers: Workers, spool: Path, corpora: Mapping[str, Corpus]
    ) -> None:
        tasks: list[CleanTask] = []
        owners: list[tuple[Corpus, int]] = []
        for corpus in corpora.values():
            split = corpus.config.split
            splitter = split.build(context.locate, context.seed) if split else Splitter(0)
            excluded = read_excluded(corpus.config.exclude, context.locate)
            for number, source in enumerate(corpus.config.sources):
                for part in source.parts(context.locate):
                    stem = spool / f"{len(tasks):06d}"
                    most = source.rejected_at_most
                    tasks.append(CleanTask(part, splitter, stem, most, excluded))
                    owners.append((corpus, number))
        results = metered(
            workers.map(clean_part, tasks),
            len(tasks),
            "reading",
            lambda: f"{sum(corpus.documents for corpus in corpora.values()):,} documents",
        )
        for (corpus, number), cleaned in zip(owners, results, strict=True):
            corpus.add(number, cleaned)
        lines = [json.dumps(line) + "\n" for line in rejected_lines(corpora)]
        if lines:
            (context.folder / REJECTED).write_text("".join(lines), encoding="utf-8")

    def _build_tokenizer(
        self, context: StageContext, state: "_State", spool: Path, corpora: Mapping[str, Corpus]
    ) -> TokenizerRecord:
        def texts(names: Sequence[str]) -> Iterator[str]:
            return chain.from_iterable(corpora[name].texts("train") for name in names)

        target = context.folder / "tokenizer"
        if not state.has("tokenizer", _tokenizer_of(target)):
            shutil.rmtree(target, ignore_errors=True)
            building = spool / "tokenizer"
            self.tokenizer.build(building, context.locate, texts)
            for path in building.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            building.replace(target)
            state.note("tokenizer", tokenizer_sha256(target))
        return tokenizer_record(target)

    def _is_whole(self, context: StageContext, state: "_State") -> bool:
        """Whether all that a finished run noted is still there."""
        found = {
            f"{name}/{side}": _digest_of(_target(context, name, side))
            for name, corpus in self.corpora.items()
            for side in corpus.sides
        }
        found["tokenizer"] = _tokenizer_of(context.folder / "tokenizer")
        return found == state.made


@dataclass(frozen=True, slots=True)
class _Writing:
    """One side of a corpus, to be written."""

    context: StageContext
    corpus: Corpus
    side: Side
    tokenizer: TokenizerRecord
    shard_tokens: int

    @property
    def target(self) -> Path:
        return _target(self.context, self.corpus.name, self.side)

    def write(self, workers: Workers) -> Manifest:
        folder = self.context.folder / "tokenizer"
        tasks = [
            EncodeTask(block, kept.tobytes(), folder)
            for block, kept in self.corpus.blocks(self.side)
        ]
        texts = written = characters = 0
        title = f"writing {self.corpus.name}/{self.side}"
        with ShardWriter(self.target, self.tokenizer, self.shard_tokens) as writer:
            results = metered(
                workers.map(encode_block, tasks),
                len(tasks),
                title,
                lambda: f"{written:,} documents, {writer.tokens:,} tokens",
            )
            for done in results:
                encoded = done.encoded
                writer.write(encoded.tokens, encoded.lengths, encoded.annotations)
                texts += done.texts
                written += len(encoded.lengths)
                characters += done.characters
            provenance = self.corpus.provenance(self.side, self.context.seed)
            provenance["counts"] |= {"without_tokens": texts - written, "characters": characters}
            return writer.finish(provenance)


@dataclass(slots=True)
class _State:
    """What is finished, on disk, so that an interrupted run does not do it again.

    Attributes:
        path: its file.
        key: of the stage.
        sources: digests of the sources of each corpus, then of what it excludes.
        made: digest of each finished output, by name.
        fingerprint: of all outputs; "" until all are finished.
    """

    path: Path
    key: str
    sources: dict[str, list[str]]
    made: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    @classmethod
    def open(cls, context: StageContext, sources: dict[str, list[str]]) -> "_State":
        """What an earlier run with the same key and the same sources left, or a new start."""
        path = context.folder / STATE
        state = cls(path, context.key, sources)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            values = {}
        if values.get("key") == context.key and values.get("sources") == sources:
            state.made = values["made"]
            state.fingerprint = values["fingerprint"]
        return state

    def has(self, name: str, digest: str | None) -> bool:
        """Whether an output is finished, and is what is found now."""
        return digest is not None and self.made.get(name) == digest

    def note(self, name: str, digest: str) -> None:
        """An output is finished; what was made from an earlier one of it is not."""
        if name == "tokenizer":
            self.made.clear()
        self.made[name] = digest
        self.fingerprint = ""
        self._save()

    def finish(self) -> str:
        """All outputs are finished: their fingerprint."""
        text = " ".join(f"{name}={digest}" for name, digest in sorted(self.made.items()))
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._save()
        return self.fingerprint

    def _save(self) -> None:
        values = {
            "key": self.key,
            "sources": self.sources,
            "made": self.made,
            "fingerprint": self.fingerprint,
        }
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(values, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)


def _clear(folder: Path) -> None:
    """Take away what another recipe or other sources gave."""
    for name in ("tokenizer", "corpora"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / REJECTED).unlink(missing_ok=True)


def _target(context: StageContext, name: str, side: Side) -> Path:
    return context.folder / "corpora" / name / side


def _digest_of(folder: Path) -> str | None:
    """Fingerprint of a finished shard folder; None where there is none, or a damaged one."""
    try:
        return ShardedDataset.open(folder).fingerprint
    except DataError:
        return None


def _tokenizer_of(folder: Path) -> str | None:
    """Digest of the tokenizer in a folder; None where there is none, or a damaged one."""
    try:
        return tokenizer_sha256(folder)
    except DataError:
        return None
