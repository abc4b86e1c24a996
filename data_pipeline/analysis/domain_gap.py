"""How far corpora lie apart before anything is trained: the numbers behind adapting to a domain.

Vocabulary overlap as in Gururangan et al., "Don't Stop Pretraining" (2020), here of words as the
tokenizer sees them; divergences of tokens and of pairs of tokens beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from configs.stage import StageConfig, StageContext
from data_pipeline.analysis.corpus import CorpusCounts, count_halves, merge_corpora, word_tokens
from data_pipeline.analysis.counts import Comparison, compare
from data_pipeline.shards import ShardedDataset, Verify
from data_pipeline.tokenization import load_backend, tokenizer_sha256
from data_pipeline.whole_file import write_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

RESULTS = "results.json"


class GapStage(StageConfig):
    """Measures every pair of corpora; writes ``results.json`` in its folder.

    Attributes:
        corpora: name -> location of a shard folder.
        tokenizer: location of the tokenizer that made them all; spells the distinctive words.
        top: how many of the most frequent words the overlap is of.
        distinctive: how many words that set one corpus off from the other are listed.
    """

    kind: Literal["gap"] = "gap"
    corpora: dict[str, str] = Field(min_length=2)
    tokenizer: str
    top: int = Field(10_000, ge=1)
    distinctive: int = Field(15, ge=0)

    def check(self, context: StageContext) -> None:
        """Missing or damaged shards, and shards of another tokenizer."""
        locations = [self.tokenizer, *self.corpora.values()]
        for location in locations:
            if context.is_made(location):
                context.locate(location)
        if all(map(context.is_made, locations)):
            self._open(context)

    def run(self, context: StageContext) -> str:
        """Measure; the fingerprint is the digest of ``results.json``."""
        opened = self._open(context, verify="digests")
        corpora = [_Corpus.count(name, data) for name, data in opened.items()]
        backend = load_backend(context.locate(self.tokenizer))
        results = {
            "kind": self.kind,
            "tokenizer": corpora[0].data.manifest.tokenizer.sha256,
            "corpora": {corpus.name: describe_corpus(corpus) for corpus in corpora},
            "pairs": [self._pair(a, b, backend) for a, b in combinations(corpora, 2)],
        }
        content = (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(context.folder / RESULTS, content)
        return hashlib.sha256(content).hexdigest()

    def _open(self, context: StageContext, verify: Verify = "sizes") -> dict[str, ShardedDataset]:
        digest = tokenizer_sha256(context.locate(self.tokenizer))
        opened = {
            name: ShardedDataset.open(context.locate(location), verify)
            for name, location in self.corpora.items()
        }
        for data in opened.values():
            data.require_tokenizer(digest, self.tokenizer)
        return opened

    def _pair(self, first: "_Corpus", second: "_Corpus", backend: "Backend") -> dict[str, Any]:
        words = compare(first.whole.words, second.whole.words)
        return {
            "corpora": [first.name, second.name],
            "vocabulary_overlap": overlap(first.whole, second.whole, self.top),
            "divergence": divergences(first.whole, second.whole),
            "distinctive_words": {
                corpus.name: self._distinctive(words, side, corpus, backend)
                for side, corpus in enumerate((first, second))
            },
        }

    def _distinctive(
        self, words: Comparison, side: int, corpus: "_Corpus", backend: "Backend"
    ) -> list[dict[str, Any]]:
        """Words, not signs, that add most to the divergence from this side, with both rates."""
        own = corpus.whole.words
        more = words.shares[side] > words.shares[1 - side]
        ranked = (-words.contributions[side]).argsort(kind="stable")
        rows: list[dict[str, Any]] = []
        for at in ranked[more[ranked]].tolist():
            if len(rows) == self.distinctive:
                break
            place = int(own.firsts[own.keys.searchsorted(words.keys[at])])
            word = backend.decode(word_tokens(corpus.data, place), skip_special_tokens=False)
            if any(map(str.isalpha, word)):
                here, there = (words.shares[[side, 1 - side], at] * 1e6).round(2).tolist()
                row = {"word": word.strip(), "per_million_words": here, "in_the_other": there}
                rows.append(row)
        return rows


@dataclass(frozen=True, slots=True)
class _Corpus:
    """A corpus with its counts, by halves and whole."""

    name: str
    data: ShardedDataset
    halves: tuple[CorpusCounts, CorpusCounts]
    whole: CorpusCounts

    @classmethod
    def count(cls, name: str, data: ShardedDataset) -> "_Corpus":
        halves = count_halves(data)
        return cls(name, data, halves, merge_corpora(list(halves)))


def describe_corpus(corpus: _Corpus) -> dict[str, Any]:
    """Size, fertility and unknown rate, and how far the corpus's own two halves lie apart."""
    whole = corpus.whole
    tokens, words = whole.tokens.total, whole.words.total
    return {
        "fingerprint": corpus.data.fingerprint,
        "documents": whole.documents,
        "tokens": tokens,
        "words": words,
        "distinct_words": len(whole.words.keys),
        "tokens_a_document": round(tokens / whole.documents, 2),
        "fertility": round(tokens / words, 4),
        "unknown_rate": _unknown_rate(whole, corpus.data.manifest.tokenizer.special),
        # What chance alone gives at half the size: a gap below it says nothing.
        "divergence_of_halves": divergences(*corpus.halves),
    }


def overlap(first: CorpusCounts, second: CorpusCounts, top: int) -> dict[str, Any]:
    """Share of the ``top`` most frequent words that both have, or of as many as both have words."""
    number = min(top, len(first.words.keys), len(second.words.keys))
    common = set(first.words.most_frequent(number).tolist())
    common &= set(second.words.most_frequent(number).tolist())
    return {"top": number, "share": round(len(common) / number, 4)}


def divergences(first: CorpusCounts, second: CorpusCounts) -> dict[str, float | None]:
    """Jensen-Shannon divergences in bits; None where one side has nothing to compare."""
    return {
        name: round(compare(a, b).divergence, 6) if len(a.keys) and len(b.keys) else None
        for name, a, b in (
            ("tokens", first.tokens, second.tokens),
            ("pairs", first.pairs, second.pairs),
            ("words", first.words, second.words),
        )
    }


def _unknown_rate(corpus: CorpusCounts, special: Mapping[str, int]) -> float | None:
    """Share of unknown tokens; None for a tokenizer that knows no such token."""
    if "unk" not in special:
        return None
    unknown = corpus.tokens.counts[corpus.tokens.keys == special["unk"]].sum()
    return round(float(unknown) / corpus.tokens.total, 6)
