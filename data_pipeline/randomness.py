"""Counter-based randomness: the same key gives the same numbers, whoever asks and whenever."""

import hashlib

import numpy as np

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
    counter = [0, key.sample & mask, key.epoch & mask, purpose & mask]
    return np.random.Generator(np.random.Philox(key=[low, key.digest & mask], counter=counter))
