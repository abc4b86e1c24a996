"""Exact duplicates: of texts that are equal after normalising, the first one stays."""

import hashlib

DIGEST_BYTES = 16


def text_digest(text: str) -> bytes:
    """128 bits that tell normalised texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
