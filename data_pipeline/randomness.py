"""Counter-based randomness: the same key gives the same numbers, whoever asks and whenever."""

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from data_pipeline.example import ExampleKey
from data_pipeline.rows import RowKeys


def keyed(seed: int, *parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for (a stable hash, not Python's)."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, key: ExampleKey, purpose: int = 0) -> np.random.Generator:
    """Philox keyed by (seed, source, sample, epoch, purpose); independent of rank and time."""
    return generators(seed, RowKeys.of([key]), purpose)[0]


def generators(seed: int, keys: RowKeys, purpose: int = 0) -> list[np.random.Generator]:
    """``generator`` for each of many rows."""
    mask = (1 << 64) - 1
    digest = keys.digest.astype(np.uint64)
    words = np.empty((len(digest), 2), np.uint64)
    words[:, 0] = digest * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(seed & mask)
    words[:, 1] = digest
    # Word 0 is the one that counts up while numbers are drawn: it must start at 0 for everybody.
    counters = np.zeros((len(digest), 4), np.uint64)
    counters[:, 1] = keys.sample
    counters[:, 2] = keys.epoch
    counters[:, 3] = np.uint64(purpose & mask)
    return [
        np.random.Generator(np.random.Philox(_KeyWords(key), counter=counter))  # type: ignore[arg-type] # any ISeedSequence will do; numpy's stub knows one
        for key, counter in zip(words, counters, strict=True)
    ]


class _KeyWords(ISeedSequence):
    """Hands Philox its key.

    ``Philox(key=...)`` gives the same numbers, but first asks the system for entropy that it
    throws away, which takes longer than all the rest.
    """

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.words = words

    def generate_state(
        self, n_words: int, dtype: object = np.uint32
    ) -> NDArray[np.uint32 | np.uint64]:
        """The two words of the key, whatever is asked: Philox asks for two of 64 bits."""
        del n_words, dtype
        return self.words
