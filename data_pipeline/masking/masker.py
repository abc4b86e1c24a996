"""The seam of masking."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.rows import Rows


class Masker(Protocol):
    """Chooses which tokens of rows the model must recover."""

    @property
    def needs_word_starts(self) -> bool:
        """It goes by words: shards that do not say where words begin are refused."""
        ...

    def choose(self, rows: Rows, rngs: Sequence[np.random.Generator]) -> NDArray[np.bool_]:
        """Bool [n, length]: the targets. Never a special token or padding.

        Of each row one at least, unless it holds no text. All randomness of a row comes from its
        own generator: the same generator state gives the same targets, whatever is beside it.
        """
        ...
