"""What was counted, as numbers for ``results.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.analysis.corpus import CorpusCounts
from data_pipeline.analysis.counts import compare
from data_pipeline.analysis.stretches import Reader
from data_pipeline.analysis.tail import long_tail, unseen

NGRAMS = ("tokens", "pairs", "triples")
Matrix = list[list[float | None]]


def describe_corpus(
    reader: Reader, whole: CorpusCounts, halves: tuple[CorpusCounts, CorpusCounts], rare: int
) -> dict[str, Any]:
    """Size, fertility and unknown rate, long tail, and how far its own two halves lie apart."""
    manifest = reader.data.manifest
    tokens, words = whole.tokens.total, whole.words.total
    return {
        "fingerprint": reader.data.fingerprint,
        "documents": whole.documents,
        "tokens": tokens,
        "words": words,
        "distinct_words": len(whole.words.keys),
        # All the rest is of a sample where these are more than what was counted.
        "all_documents": sum(shard.documents for shard in manifest.shards),
        "all_tokens": manifest.tokens,
        "tokens_a_document": round(tokens / whole.documents, 2),
        "fertility": round(tokens / words, 4),
        "unknown_rate": _unknown_rate(whole, manifest.tokenizer.special),
        "long_tail": long_tail(whole.words, rare),
        # What chance alone gives at half the size: a gap below it says nothing.
        "divergence_of_halves": divergences(*halves),
        "unseen_of_halves": unseen_words(*halves),
    }


def overlap(first: CorpusCounts, second: CorpusCounts, top: int) -> dict[str, Any]:
    """Share of the ``top`` most frequent words that both have, or of as many as both have words."""
    number = min(top, len(first.words.keys), len(second.words.keys))
    common = set(first.words.most_frequent(number).tolist())
    common &= set(second.words.most_frequent(number).tolist())
    return {"top": number, "share": round(len(common) / number, 4)}


def divergences(first: CorpusCounts, second: CorpusCounts) -> dict[str, float | None]:
    """Jensen-Shannon divergences in bits; None where one side has nothing to compare."""
    sides = [("words", first.words, second.words)]
    sides += zip(NGRAMS, first.ngrams, second.ngrams, strict=False)
    return {
        name: round(compare(a, b).divergence, 6) if len(a.keys) and len(b.keys) else None
        for name, a, b in sides
    }


def unseen_words(first: CorpusCounts, second: CorpusCounts) -> dict[str, float] | None:
    """Shares of the first one's words that the second never has; None if either has no words."""
    if not (len(first.words.keys) and len(second.words.keys)):
        return None
    return unseen(first.words, second.words)


def matrices(
    corpora: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Every measure over all pairs of corpora, rows and columns in the order of ``corpora``.

    Where a measure has a direction, the row is of the corpus that is judged by the column's:
    ``unseen_*`` are words of the row that the column never has, ``covered`` documents of the row
    that the column covers. On the diagonal stand a corpus's own halves, or what it must be.
    """
    table = _Tables(list(corpora))
    for name, corpus in corpora.items():
        _put_own(table, name, corpus)
    for pair in pairs:
        _put_pair(table, pair)
    return {"corpora": table.names, "measures": table.measures}


def _put_own(table: "_Tables", name: str, corpus: Mapping[str, Any]) -> None:
    """The diagonal."""
    table.put("vocabulary_overlap", name, name, 1.0)
    for kind, value in corpus["divergence_of_halves"].items():
        table.put(f"divergence_{kind}", name, name, value)
    for kind, value in (corpus["unseen_of_halves"] or {}).items():
        table.put(f"unseen_{kind}", name, name, value)


def _put_pair(table: "_Tables", pair: Mapping[str, Any]) -> None:
    first, second = pair["corpora"]
    both = {
        "vocabulary_overlap": pair["vocabulary_overlap"]["share"],
        **{f"divergence_{kind}": value for kind, value in pair["divergence"].items()},
    }
    if pair["context"]:
        both["context_shift"] = pair["context"]["shift"]
    if pair["coverage"]:
        both["clusters_common"] = pair["coverage"]["common"]
    for row, column in ((first, second), (second, first)):
        for measure, value in both.items():
            table.put(measure, row, column, value)
        for kind, value in pair["unseen"][row].items():
            table.put(f"unseen_{kind}", row, column, value)
        if pair["coverage"]:
            table.put("covered", row, column, pair["coverage"]["covered"][row])
            table.put("covered", row, row, 1.0)
            table.put("clusters_common", row, row, 1.0)


class _Tables:
    """Square tables by measure, None where nothing was put."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.measures: dict[str, Matrix] = {}

    def put(self, measure: str, row: str, column: str, value: float | None) -> None:
        size = len(self.names)
        table = self.measures.setdefault(measure, [[None] * size for _ in range(size)])
        table[self.names.index(row)][self.names.index(column)] = value


def _unknown_rate(corpus: CorpusCounts, special: Mapping[str, int]) -> float | None:
    """Share of unknown tokens; None for a tokenizer that knows no such token."""
    if "unk" not in special:
        return None
    unknown = corpus.tokens.counts[corpus.tokens.keys == special["unk"]].sum()
    return round(float(unknown) / corpus.tokens.total, 6)
