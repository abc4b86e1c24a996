"""The measuring of corpora, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.analysis.clusters import Clustered, cluster
from data_pipeline.analysis.context import (
    Occurrences,
    Shift,
    choose,
    collect,
    describe_shift,
    neighbours_that_differ,
    shift,
)
from data_pipeline.analysis.corpus import CorpusCounts, count_halves, merge_corpora
from data_pipeline.analysis.counts import Comparison, compare
from data_pipeline.analysis.describe import (
    describe_corpus,
    divergences,
    matrices,
    overlap,
    unseen_words,
)
from data_pipeline.analysis.settings import Context
from data_pipeline.analysis.stretches import Reader
from data_pipeline.analysis.vocabulary import Speller, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer as Backend

    from data_pipeline.analysis.domain_gap import GapStage


def measure(
    stage: "GapStage", readers: "Mapping[str, Reader]", backend: "Backend", seed: int
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    corpora = [_Corpus.count(name, reader, stage) for name, reader in readers.items()]
    speller = Speller([(one.reader.data, one.whole.words) for one in corpora], backend)
    vocabulary = Vocabulary.of([one.whole.words for one in corpora], stage.vocabulary)
    return _Measured(
        stage,
        corpora,
        speller,
        vocabulary,
        _Contexts.of(corpora, stage.context, speller, vocabulary) if stage.context else None,
        cluster([one.reader for one in corpora], vocabulary, stage.clusters, seed)
        if stage.clusters
        else None,
    ).results()


@dataclass(frozen=True, slots=True)
class _Corpus:
    """A corpus with its counts, by halves and whole."""

    name: str
    reader: Reader
    halves: tuple[CorpusCounts, CorpusCounts]
    whole: CorpusCounts

    @classmethod
    def count(cls, name: str, reader: Reader, stage: "GapStage") -> "_Corpus":
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
            (a.name, b.name): choose(settings, a.halves, b.halves, speller)
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

    stage: "GapStage"
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
