"""Whole-word masking: all pieces of a chosen word together (BERT's later release; Cui et al. 2019).

Words come from the shard's annotations, hence from the tokenizer's own offsets: right for
WordPiece, byte-level BPE and SentencePiece alike.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import WORD_START
from data_pipeline.rows import Rows


class WholeWordMasking(Config):
    """Mask each word independently with probability ``rate``, so that none is half visible."""

    name: Literal["whole_word"] = "whole_word"
    rate: float = Field(0.15, gt=0, le=1, description="expected share of masked words and tokens")

    @property
    def needs_word_starts(self) -> bool:
        """True: they say where words begin."""
        return True

    def choose(self, rows: Rows, rngs: Sequence[np.random.Generator]) -> NDArray[np.bool_]:
        """Bool [n, length]: the targets; see ``Masker``."""
        text = ~rows.special
        starts = word_starts(rows, text)
        counts = np.count_nonzero(starts, axis=1)
        # Word 0 of a row is what stands before its first word: special tokens alone.
        bounds = np.append(0, np.cumsum(counts + 1))
        drawn = np.empty(bounds[-1], np.float32)
        for rng, first, stop in zip(rngs, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            rng.random(dtype=np.float32, out=drawn[first:stop])
        chosen = drawn < self.rate
        chosen[bounds[:-1]] = False
        lone = (np.add.reduceat(chosen, bounds[:-1], dtype=np.int64) == 0) & (counts > 0)
        for row in np.flatnonzero(lone).tolist():
            chosen[bounds[row] + 1 + rngs[row].integers(counts[row])] = True
        # Counted on through all rows, and once more for each row's word 0.
        word = np.cumsum(starts.reshape(-1), dtype=np.intp).reshape(text.shape)
        word += np.arange(len(rows))[:, None]
        hidden = chosen.take(word)
        hidden &= text
        return hidden


def word_starts(rows: Rows, text: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bool [n, length]: where words begin. A piece cut inside a word begins with a word."""
    starts = (rows.annotations & WORD_START).view(np.bool_)
    starts[:, 0] = True
    segments = rows.segments
    fresh = segments[:, 1:] != segments[:, :-1]
    fresh |= rows.special[:, :-1]
    starts[:, 1:] |= fresh
    starts &= text
    return starts
