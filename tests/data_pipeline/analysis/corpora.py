"""Shard folders of words that are a token each, made for the analyses' tests."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.analysis.corpus import CorpusCounts, count_halves
from data_pipeline.analysis.stretches import Reader
from data_pipeline.analysis.vocabulary import Speller
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset, ShardWriter, TokenizerRecord


def write_words(folder: Path, documents: Iterable[Sequence[int]], size: int = 1000) -> Reader:
    record = TokenizerRecord(
        name="tiny", sha256="a" * 64, vocabulary_size=size, special={}, prefix=[], suffix=[]
    )
    with ShardWriter(folder, record, 4000) as writer:
        for document in documents:
            tokens = np.array(document)
            annotations = np.full(len(tokens), WORD_START, np.uint8)
            writer.write(tokens, np.array([len(tokens)], np.int32), annotations)
        writer.finish({})
    return Reader(ShardedDataset.open(folder), seed=1)


class Letters:
    """A tokenizer that writes id 7 as ``w7``; ids below ten are signs."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return " ".join(f"w{token}" if token >= 10 else "." for token in ids)


def counted(reader: Reader) -> tuple[CorpusCounts, CorpusCounts]:
    return count_halves(reader, 1)


def speller(readers: Iterable[Reader]) -> Speller:
    sources = []
    for reader in readers:
        sources += [(reader.data, half.words) for half in counted(reader)]
    return Speller(sources, Letters())
