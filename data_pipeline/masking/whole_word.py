"""Whole-word masking: all pieces of a chosen word together (BERT's later release; Cui et al. 2019).

Words come from the shard's annotations, hence from the tokenizer's own offsets: right for
WordPiece, byte-level BPE and SentencePiece alike.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import WORD_START, Example


class WholeWordMasking(Config):
    """Mask each word independently with probability ``rate``, so that none is half visible."""

    name: Literal["whole_word"] = "whole_word"
    rate: float = Field(0.15, gt=0, le=1, description="expected share of masked words and tokens")

    def choose(self, example: Example, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Bool [length]: the targets; see ``Masker``."""
        text = ~example.special
        word = np.cumsum(word_starts(example, text), dtype=np.intp)
        count = int(word[-1])
        if count == 0:
            return text
        # Word 0 is what stands before the first word: special tokens alone.
        chosen = rng.random(count + 1, np.float32) < self.rate
        if not chosen[1:].any():
            chosen[1 + rng.integers(count)] = True
        hidden = chosen.take(word)
        hidden &= text
        return hidden


def word_starts(example: Example, text: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bool [length]: where words begin. A piece that was cut inside a word begins with a word."""
    starts = (example.annotations & WORD_START).astype(np.bool_)
    starts[0] = True
    segments = example.segments
    fresh = segments[1:] != segments[:-1]
    fresh |= example.special[:-1]
    starts[1:] |= fresh
    starts &= text
    return starts
