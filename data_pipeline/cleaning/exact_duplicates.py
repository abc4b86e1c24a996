"""Exact duplicates: of texts that are equal after normalising, the first one stays."""

import hashlib

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16


def text_digest(text: str) -> bytes:
    """128 bits that tell normalised texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def first_occurrences(digests: bytes) -> NDArray[np.bool_]:
    """Which texts have no equal before them.

    Args:
        digests: ``text_digest`` of N texts, one behind the other.

    Returns:
        bool [N].
    """
    high, low = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    # A stable sort: within a run of equal digests the order is that of the texts.
    order = np.lexsort((low, high))
    repeated = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    first = np.ones(len(order), np.bool_)
    first[order[1:][repeated]] = False
    return first
