"""Attention on one CPU core: torch's flash kernel against plain products, forward and backward."""

from itertools import product
from statistics import median
from time import process_time
from typing import Any

ROUNDS = 7
SHAPES = ((16, 4, 64, 32), (16, 4, 128, 32), (16, 12, 128, 64), (8, 4, 256, 64), (8, 4, 512, 64))
"""Rows, heads, length, size of a head."""


def measure() -> dict[str, Any]:
    """CPU time of both kernels in turn (A B B A); the value is the worst ratio that is used."""
    import torch

    from engine.backends.attention import LONGEST

    torch.set_num_threads(1)
    details = [_pair(*case) for case in product(SHAPES, (torch.bfloat16, torch.float32))]
    used = [
        line["ratio"] for line in details if line["dtype"] == "bfloat16" and line["L"] <= LONGEST
    ]
    value = max(used)
    return {
        "id": "cpu_attention",
        "value": f"plain/flash CPU time at most {value} in bf16 up to {LONGEST} tokens",
        "target": 1.0,
        "reached": value <= 1.0,
        "details": details,
    }


def _pair(shape: tuple[int, int, int, int], dtype: Any) -> dict[str, Any]:
    from torch.nn.attention import SDPBackend

    flash, plain = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
    seen: dict[Any, list[float]] = {flash: [], plain: []}
    inputs = _inputs(shape, dtype)
    for kernel in (flash, plain):
        _once(inputs, kernel)
    for turn in range(ROUNDS):
        order = (flash, plain, plain, flash) if turn % 2 else (plain, flash, flash, plain)
        for kernel in order:
            seen[kernel].append(_once(inputs, kernel))
    ratios = [p / f for p, f in zip(seen[plain], seen[flash], strict=True)]
    rows, heads, length, size = shape
    return {
        "B": rows,
        "H": heads,
        "L": length,
        "D": size,
        "dtype": str(dtype).removeprefix("torch."),
        "flash_ms": round(1000 * median(seen[flash]), 2),
        "plain_ms": round(1000 * median(seen[plain]), 2),
        "ratio": round(median(ratios), 2),
    }


def _inputs(shape: tuple[int, int, int, int], dtype: Any) -> tuple[Any, ...]:
    import torch

    rows, _, length, _ = shape
    torch.manual_seed(0)
    qkv = [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    segments = torch.arange(length) // 40
    mask = (segments[:, None] == segments[None]).expand(rows, 1, length, length)
    return (*qkv, mask)


def _once(inputs: tuple[Any, ...], kernel: Any) -> float:
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    *qkv, mask = inputs
    began = process_time()
    with sdpa_kernel(kernel):
        scaled_dot_product_attention(*qkv, attn_mask=mask).sum().backward()
    return process_time() - began
