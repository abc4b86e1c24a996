"""Dynamic masking: each token by itself, afresh in every epoch (RoBERTa, Liu et al. 2019)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.schema import Config
from data_pipeline.example import Example


class DynamicMasking(Config):
    """Mask each token independently with probability ``rate``."""

    name: Literal["dynamic"] = "dynamic"
    rate: float = Field(0.15, gt=0, le=1, description="expected share of masked tokens")

    def choose(self, example: Example, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Bool [length]: the targets; see ``Masker``."""
        hidden = rng.random(len(example.tokens), np.float32) < self.rate
        hidden &= ~example.special
        if not hidden.any():
            words = np.flatnonzero(~example.special)
            if words.size:
                hidden[words[rng.integers(words.size)]] = True
        return hidden
