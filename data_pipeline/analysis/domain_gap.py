"""How far corpora lie apart before anything is trained: the numbers behind adapting to a domain.

Vocabulary overlap as in Gururangan et al., "Don't Stop Pretraining" (2020), here of words as the
tokenizer sees them; beside it divergences of words and n-grams, the contexts of words, the long
tail, and what the documents are about.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from configs.stage import StageConfig, StageContext
from data_pipeline.analysis.clusters import Clustered, Clusters, cluster
from data_pipeline.analysis.context import (
    Context,
    Occurrences,
    Shift,
    collect,
    describe_shift,
    neighbours_that_differ,
    shift,
)
from data_pipeline.analysis.corpus import MOST_NGRAMS, CorpusCounts, count_halves, merge_corpora
from data_pipeline.analysis.counts import Comparison, compare
from data_pipeline.analysis.describe import (
    describe_corpus,
    divergences,
    matrices,
    overlap,
    unseen_words,
)
from data_pipeline.analysis.stretches import Reader
from data_pipeline.analysis.vocabulary import Speller, Vocabulary
from data_pipeline.shards import CacheConfig, Mode, ShardedDataset, Verify, find_shards
from data_pipeline.tokenization import load_backend, tokenizer_sha256
from data_pipeline.whole_file import write_whole

RESULTS = "results.json"


class GapStage(StageConfig):
    """Measures every pair of corpora; writes ``results.json`` in its folder.

    Attributes:
        corpora: name -> location of a shard folder, here or a URL.
        tokenizer: location of the tokenizer that made them all; spells the words.
        top: how many of the most frequent words the overlap is of.
        distinctive: how many words that set one corpus off from the other are listed.
        ngrams: runs of up to so many tokens are compared.
        rare: a word seen at most so often belongs to the long tail.
        sample_tokens: about so many tokens of each corpus are counted at most, in documents drawn
            from everywhere.
        vocabulary: so many words, the most frequent over all corpora, name neighbours and
            describe documents.
        context: how the neighbours of words are compared; null: not at all.
        clusters: how documents are clustered; null: not at all.
        cache: where shards at URLs are kept.
        mode: how shards are read; ``pread`` for file systems that cannot map files.
    """

    VERSION: ClassVar[int] = 3
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"cache", "mode"})

    kind: Literal["gap"] = "gap"
    corpora: dict[str, str] = Field(min_length=2)
    tokenizer: str
    top: int = Field(10_000, ge=1)
    distinctive: int = Field(15, ge=0)
    ngrams: int = Field(MOST_NGRAMS, ge=1, le=MOST_NGRAMS)
    rare: int = Field(5, ge=1)
    sample_tokens: int = Field(20_000_000, ge=1)
    vocabulary: int = Field(20_000, ge=1)
    context: Context | None = Context()
    clusters: Clusters | None = Clusters()
    cache: CacheConfig = CacheConfig()
    mode: Mode = "mmap"

    def check(self, context: StageContext) -> None:
        """Missing or damaged shards, shards of another tokenizer or without words."""
        locations = [self.tokenizer, *self.corpora.values()]
        for location in locations:
            if context.is_made(location):
                find_shards(location, context.locate)
        if all(map(context.is_made, locations)):
            self._open(context)

    def run(self, context: StageContext) -> str:
        """Measure; the fingerprint is the digest of ``results.json``."""
        readers = self._open(context, verify="digests")
        backend = load_backend(context.locate(self.tokenizer))
        corpora = [_Corpus.count(name, reader, self) for name, reader in readers.items()]
        speller = Speller([(one.reader.data, one.whole.words) for one in corpora], backend)
        vocabulary = Vocabulary.of([one.whole.words for one in corpora], self.vocabulary)
        measured = _Measured(
            self,
            corpora,
            speller,
            vocabulary,
            _Contexts.of(corpora, self.context, speller, vocabulary) if self.context else None,
            cluster([one.reader for one in corpora], vocabulary, self.clusters, context.seed)
            if self.clusters
            else None,
        )
        content = (json.dumps(measured.results(), indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(context.folder / RESULTS, content)
        return hashlib.sha256(content).hexdigest()

    def _open(self, context: StageContext, verify: Verify = "sizes") -> dict[str, Reader]:
        digest = tokenizer_sha256(context.locate(self.tokenizer))
        opened = {
            name: ShardedDataset.open(
                find_shards(location, context.locate), verify, mode=self.mode, cache=self.cache
            )
            for name, location in self.corpora.items()
        }
        for data in opened.values():
            data.require_tokenizer(digest, self.tokenizer)
        return {
            name: Reader.limited(data, self.sample_tokens, context.seed)
            for name, data in opened.items()
        }


@dataclass(frozen=True, slots=True)
class _Corpus:
    """A corpus with its counts, by halves and whole."""

    name: str
    reader: Reader
    halves: tuple[CorpusCounts, CorpusCounts]
    whole: CorpusCounts

    @classmethod
    def count(cls, name: str, reader: Reader, stage: GapStage) -> "_Corpus":
        halves = count_halves(reader, stage.ngrams)
        whole = merge_corpora(list(halves))
        if not whole.tokens.total:
            msg = (
                f"{reader.data.folder}: none of its {len(reader.data):,} documents was drawn into "
                f"a sample of {stage.sample_tokens:,} tokens; raise sample_tokens"
            )
            raise DataError(msg)
        return cls(name, reader, halves, whole)


@dataclass(frozen=True, slots=True)
class _Contexts:
    """Which words are compared in each pair, and where they stand in each corpus."""

    settings: Context
    chosen: dict[tuple[str, str], NDArray[np.uint64]]
    occurrences: dict[str, tuple[Occurrences, Occurrences]]

    @classmethod
    def of(
        cls,
        corpora: Sequence[_Corpus],
        settings: Context,
        speller: Speller,
        vocabulary: Vocabulary,
    ) -> "_Contexts":
        chosen = {
            (a.name, b.name): settings.choose(a.halves, b.halves, speller)
            for a, b in combinations(corpora, 2)
        }
        words = np.unique(np.concatenate(list(chosen.values())))
        occurrences = {
            one.name: collect(one.reader, one.halves, words, vocabulary, settings)
            for one in corpora
        }
        return cls(settings, chosen, occurrences)

    def shift(self, first: _Corpus, second: _Corpus) -> Shift:
        words = self.chosen[first.name, second.name]
        weights = np.zeros(len(words))
        for counts in (first.whole.words, second.whole.words):
            weights += counts.counts[counts.keys.searchsorted(words)] / counts.total
        sides = self.occurrences[first.name], self.occurrences[second.name]
        return shift(*sides, words, weights, self.settings)


@dataclass(frozen=True, slots=True)
class _Measured:
    """All that was measured, to be put into ``results.json``."""

    stage: GapStage
    corpora: Sequence[_Corpus]
    speller: Speller
    vocabulary: Vocabulary
    contexts: _Contexts | None
    clustered: Clustered | None

    def results(self) -> dict[str, Any]:
        names = [corpus.name for corpus in self.corpora]
        described = {corpus.name: self._corpus(at) for at, corpus in enumerate(self.corpora)}
        pairs = [self._pair(a, b) for a, b in combinations(range(len(names)), 2)]
        clusters = None
        if self.clustered is not None and self.stage.clusters is not None:
            words = self.stage.clusters.words
            clusters = {
                "documents": dict(zip(names, self.clustered.documents, strict=True)),
                "clusters": self.clustered.describe(names, self.vocabulary, self.speller, words),
            }
        return {
            "kind": self.stage.kind,
            "tokenizer": self.corpora[0].reader.data.manifest.tokenizer.sha256,
            "limits": {
                "sample_tokens": self.stage.sample_tokens,
                "vocabulary": len(self.vocabulary),
                "context": self.stage.context.model_dump() if self.stage.context else None,
                "clusters": self.stage.clusters.model_dump() if self.stage.clusters else None,
            },
            "corpora": described,
            "pairs": pairs,
            "clusters": clusters,
            "matrices": matrices(described, pairs),
        }

    def _corpus(self, at: int) -> dict[str, Any]:
        corpus = self.corpora[at]
        described = describe_corpus(corpus.reader, corpus.whole, corpus.halves, self.stage.rare)
        described["balance"] = self.clustered.balance(at) if self.clustered else None
        return described

    def _pair(self, a: int, b: int) -> dict[str, Any]:
        first, second = self.corpora[a], self.corpora[b]
        words = compare(first.whole.words, second.whole.words)
        names = [first.name, second.name]
        return {
            "corpora": names,
            "vocabulary_overlap": overlap(first.whole, second.whole, self.stage.top),
            "divergence": divergences(first.whole, second.whole),
            "unseen": {
                first.name: unseen_words(first.whole, second.whole),
                second.name: unseen_words(second.whole, first.whole),
            },
            "context": self._context(first, second),
            "coverage": self._coverage(a, b),
            "distinctive_words": {
                corpus.name: self._distinctive(words, side)
                for side, corpus in enumerate((first, second))
            },
        }

    def _coverage(self, a: int, b: int) -> dict[str, Any] | None:
        clustered = self.clustered
        if clustered is None:
            return None
        names = self.corpora[a].name, self.corpora[b].name
        return {
            "common": clustered.common(a, b),
            "covered": {names[0]: clustered.covered(a, b), names[1]: clustered.covered(b, a)},
        }

    def _context(self, first: _Corpus, second: _Corpus) -> dict[str, Any] | None:
        contexts = self.contexts
        if contexts is None:
            return None
        found = contexts.shift(first, second)
        order = (-found.excess).argsort(kind="stable")[: contexts.settings.listed]
        return describe_shift(found, contexts.settings) | {
            "most_shifted": [self._shifted(found, at, first, second) for at in order.tolist()]
        }

    def _shifted(self, found: Shift, at: int, first: _Corpus, second: _Corpus) -> dict[str, Any]:
        contexts, word = self.contexts, found.words[at]
        assert contexts is not None
        sides = contexts.occurrences[first.name], contexts.occurrences[second.name]
        here, there = neighbours_that_differ(*sides, word, self.vocabulary, self.speller)
        return {
            "word": self.speller.spell(int(word)),
            "shift": round(float(found.excess[at]), 4),
            "across": round(float(found.across[at]), 4),
            "within": round(float(found.within[at]), 4),
            "neighbours": {first.name: here, second.name: there},
        }

    def _distinctive(self, words: Comparison, side: int) -> list[dict[str, Any]]:
        """Words, not signs, that add most to the divergence from this side, with both rates."""
        more = words.shares[side] > words.shares[1 - side]
        ranked = (-words.contributions[side]).argsort(kind="stable")
        rows: list[dict[str, Any]] = []
        for at in ranked[more[ranked]].tolist():
            if len(rows) == self.stage.distinctive:
                break
            word = self.speller.spell(int(words.keys[at]))
            if any(map(str.isalpha, word)):
                here, there = (words.shares[[side, 1 - side], at] * 1e6).round(2).tolist()
                rows.append({"word": word, "per_million_words": here, "in_the_other": there})
        return rows
