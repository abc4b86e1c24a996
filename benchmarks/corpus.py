"""Made-up shards with documents as long as real ones."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards import ShardWriter, TokenizerRecord
from data_pipeline.streaming import DataConfig

VOCABULARY = 50_000
LENGTH = 512
SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
WORDS = 0.7
"""Share of tokens that begin a word."""


def write(folder: Path, name: str, seed: int, tokens: int, mean_log: float = 5.5) -> None:
    """A source ``folder/name`` of about so many tokens; log-normal lengths of documents."""
    draw = np.random.default_rng(seed)
    record = TokenizerRecord(
        name="made up",
        sha256="a" * 64,
        vocabulary_size=VOCABULARY,
        special=SPECIAL,
        prefix=[SPECIAL["cls"]],
        suffix=[SPECIAL["sep"]],
    )
    left = tokens
    with ShardWriter(folder / name, record, 8_000_000) as writer:
        while left > 0:
            lengths = np.maximum(1, draw.lognormal(mean_log, 1, 5000)).astype(np.int32)
            total = int(lengths.sum())
            words = (draw.random(total) < WORDS).astype(np.uint8)
            writer.write(draw.integers(4, VOCABULARY, total, np.uint16), lengths, words)
            left -= total
        writer.finish({})


def mixture(folder: Path, weights: dict[str, float], **settings: Any) -> DataConfig:
    """Rows of 512 tokens of sources that ``write`` made."""
    sources = {
        name: {"shards": str(folder / name), "weight": weight} for name, weight in weights.items()
    }
    return DataConfig.model_validate({"length": LENGTH, "sources": sources} | settings)
