"""Freed memory stays with the process: glibc gives large blocks back to the kernel at once.

Every tensor of a step would then be mapped, zeroed page by page and unmapped again, which took a
quarter of a plain training step on a CPU, and little where no whole squares of attention are made
(benchmarks/LOG.md). GPUs have an allocator of torch's own.
"""

import ctypes
import sys

# As mallopt(3) numbers them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks of any size; False where there is another C library.

    For a process whose large tensors come and go alike for hours. Its memory does not shrink.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROWTH))
    taken = [mallopt(name, value) for name, value in settings]
    return taken == [1] * len(settings)
