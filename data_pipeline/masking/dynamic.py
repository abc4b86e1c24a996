"""Dynamic masking: each token by itself, afresh in every epoch (RoBERTa, Liu et al. 2019)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.schema import Config
from data_pipeline.rows import Rows


class DynamicMasking(Config):
    """Mask each token independently with probability ``rate``."""

    name: Literal["dynamic"] = "dynamic"
    rate: float = Field(0.15, gt=0, le=1, description="expected share of masked tokens")

    @property
    def needs_word_starts(self) -> bool:
        """False: a token is a token."""
        return False

    def choose(self, rows: Rows, rngs: Sequence[np.random.Generator]) -> NDArray[np.bool_]:
        """Bool [n, length]: the targets; see ``Masker``."""
        drawn = np.empty((len(rows), rows.length), np.float32)
        for row, rng in enumerate(rngs):
            rng.random(dtype=np.float32, out=drawn[row])
        hidden = drawn < self.rate
        text = ~rows.special
        hidden &= text
        for row in np.flatnonzero(~hidden.any(axis=1)).tolist():
            words = np.flatnonzero(text[row])
            if words.size:
                hidden[row, words[rngs[row].integers(words.size)]] = True
        return hidden
