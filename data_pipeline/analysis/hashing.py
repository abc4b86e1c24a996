"""Hashes of numbers, and fixed random samples by them."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.randomness import keyed

_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64-bit numbers, one by one (the two rounds of splitmix64)."""
    found = values * _MULTIPLIER
    found ^= found >> _SHIFT
    found *= _MULTIPLIER
    found ^= found >> _SHIFT
    return found


def priorities(seed: int, numbers: NDArray[np.int64], purpose: str) -> NDArray[np.uint64]:
    """A number for each thing; the things with the smallest ones are a fixed random sample."""
    salt = np.uint64(keyed(seed, purpose))
    return mixed(mixed(numbers.astype(np.uint64) + np.uint64(1)) ^ salt)


def threshold(share: float) -> np.uint64:
    """What a share of all priorities, below 1, is below."""
    return np.uint64(int(share * (1 << 64)))


def half_of(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """In which half of a corpus each document is, 0 or 1.

    Of each two that follow one another a coin tells which is in which half: the halves are of one
    size, and an order such as that of texts and their translations by turns does not show.
    """
    tossed = mixed((documents // 2).astype(np.uint64) + np.uint64(1)) >> np.uint64(63)
    return (documents + tossed.astype(np.int64)) % 2
