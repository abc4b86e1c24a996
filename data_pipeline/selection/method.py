"""What every way of judging documents offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.schema import Config


class Scorer(Protocol):
    """A fitted method."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """How like the target each text is, the more the higher; -inf without anything to judge."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that was learnt, for ``Method.restored`` in another process; no objects."""
        ...


class Method(Config, ABC):
    """Base of the methods' configs."""

    @abstractmethod
    def fit(self, target: Sequence[str], background: Sequence[str], seed: int) -> Scorer:
        """Learn what sets the target off.

        Args:
            target: texts to be like.
            background: a random sample of the texts that are chosen from.
            seed: of anything random.

        Raises:
            DataError: there is too little to learn from.
        """

    @abstractmethod
    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Scorer:
        """The scorer of this method that told these ``arrays``."""
