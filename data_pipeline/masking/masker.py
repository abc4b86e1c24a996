"""The seam of masking."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.example import Example


class Masker(Protocol):
    """Chooses which tokens of an example the model must recover."""

    def choose(self, example: Example, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Bool [length]: the targets. Never a special token or padding; one at least, if any can.

        All randomness comes from ``rng``: the same generator state gives the same targets.
        """
        ...
