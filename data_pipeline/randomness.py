"""Counter-based randomness: the same key gives the same numbers, whoever asks and whenever."""

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from data_pipeline.example import ExampleKey


def keyed(seed: int, *parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for (a stable hash, not Python's)."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, key: ExampleKey, purpose: int = 0) -> np.random.Generator:
    """Philox keyed by (seed, source, sample, epoch, purpose); independent of rank and time."""
    mask = (1 << 64) - 1
    low = (seed & mask) ^ ((key.digest * 0x9E3779B97F4A7C15) & mask)
    # Word 0 is the one that counts up while numbers are drawn: it must start at 0 for everybody.
    # Arrays: numpy takes a list with a number above 2**63 for doubles, and loses its last bits.
    counter = np.array([0, key.sample & mask, key.epoch & mask, purpose & mask], np.uint64)
    words = _KeyWords(np.array([low, key.digest & mask], np.uint64))
    philox = np.random.Philox(words, counter=counter)  # type: ignore[arg-type] # any ISeedSequence will do; numpy's stub knows one
    return np.random.Generator(philox)


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
