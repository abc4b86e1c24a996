"""What a packing makes: rows of pieces of sequences, as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.errors import RecipeError


@dataclass(frozen=True, slots=True)
class RowShape:
    """A row's capacity.

    Attributes:
        length: tokens a row, special ones included.
        overhead: special tokens that stand around every piece in it.
    """

    length: int
    overhead: int

    def __post_init__(self) -> None:
        if self.room < 1:
            msg = (
                f"data.length {self.length}: the tokenizer puts {self.overhead} special tokens "
                f"around a document, which leaves no room for text; give more than that"
            )
            raise RecipeError(msg)

    @property
    def room(self) -> int:
        """The longest piece of text that fits."""
        return self.length - self.overhead


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """The rows of one shard.

    Attributes:
        offsets: int64 [rows + 1]: row r holds the pieces offsets[r] up to offsets[r + 1].
        pieces: int32 [P, 3]: sequence in the shard, start in the sequence, length; in tokens,
            without special ones.
    """

    offsets: NDArray[np.int64]
    pieces: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1


def cut(lengths: NDArray[np.int32], room: int) -> NDArray[np.int32]:
    """Cut sequences into pieces of ``room`` and a rest: int32 [P, 3], in order."""
    counts = -(-lengths.astype(np.int64) // room)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * room
    length = np.minimum(room, lengths[sequence] - start)
    return np.stack((sequence, start, length), axis=1).astype(np.int32)
