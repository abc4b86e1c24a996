"""What a packing is given of a shard, and what it makes: rows of pieces of sequences."""

from collections.abc import Callable
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
        before: those of them that stand before it.
    """

    length: int
    overhead: int
    before: int = 0

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

    def room_up_to(self, longest: int | None) -> int:
        """The longest piece of text in a row where a piece has at most ``longest`` tokens."""
        if longest is None:
            return self.room
        if longest <= self.overhead:
            msg = (
                f"data.packing.longest {longest}: the tokenizer puts {self.overhead} special "
                "tokens around a document, which leaves no room for text; give more than that"
            )
            raise RecipeError(msg)
        return min(self.room, longest - self.overhead)


@dataclass(frozen=True, slots=True)
class ShardText:
    """What a packing may know of a shard.

    Attributes:
        lengths: of its sequences, int32 [N], in tokens.
        annotations: reads the bits of ``.ann`` of all its tokens, uint8 [T]; called only by a
            packing that needs them.
        name: for errors.
    """

    lengths: NDArray[np.int32]
    annotations: Callable[[], NDArray[np.uint8]]
    name: str = "shard"


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """The rows of one shard.

    Attributes:
        offsets: int64 [rows + 1]: row r holds the pieces offsets[r] up to offsets[r + 1].
        pieces: int32 [P, 3]: sequence in the shard, start in the sequence, length; in tokens,
            without special ones.
        sentences: int64 [S]: where sentences begin, in tokens from the shard's first; empty for a
            packing that does not go by sentences.
    """

    offsets: NDArray[np.int64]
    pieces: NDArray[np.int32]
    sentences: NDArray[np.int64]

    @classmethod
    def of(cls, offsets: NDArray[np.int64], pieces: NDArray[np.int32]) -> "PackingPlan":
        """A plan that knows nothing of sentences."""
        return cls(offsets, pieces, np.zeros(0, np.int64))

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
