"""What a recipe may choose of shards: their size, and how they are read."""

from typing import Literal

SHARD_TOKENS = 1 << 26
"""A shard is closed by the sequence that brings it to so many tokens (128 MiB of uint16)."""
Mode = Literal["mmap", "pread"]
"""``mmap``: shards are mapped into memory. ``pread``: for file systems that refuse that."""
Verify = Literal["sizes", "digests"]
