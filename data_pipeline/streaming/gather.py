"""Many stretches of many shards, end to end in one array, copied by Arrow's C++ loop.

A stretch is described in 16 bytes, as in an Arrow ``binary_view`` array, so that a batch of them is
taken from a table by one index array, and its copy is one cast. A stretch is wider than the text in
it by the special tokens around it and the padding behind it: there it copies what happens to stand
beside the text, and special ids are written over it afterwards. That way one copy fills a row.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError, RecipeError
from data_pipeline.packing import RowShape

if TYPE_CHECKING:
    import pyarrow as pa

Places = NDArray[np.int64]

STRETCH = np.dtype([("size", "<i4"), ("padding", "<i4"), ("window", "<i4"), ("offset", "<i4")])
"""In tokens: all of it; its padding, and ``EDGE``; where it begins, from its window's begin."""

EDGE = 1 << 30
"""Added to ``padding`` of a stretch that reaches over its shard's first or last token."""

WINDOW = 1 << 28
"""Tokens from one window of a shard to the next: a view's offset has 31 bits, in bytes."""

INLINE = 12
"""Arrow keeps so many bytes or fewer inside the view itself, not in a buffer."""

_INLINE_VIEW = struct.Struct("<i12s")
_BUFFER_VIEW = struct.Struct("<iiii")


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What the stretches of a shard must stay within.

    Attributes:
        name: for errors.
        tokens: how many it has.
        window: tokens, see ``WINDOW``.
    """

    name: str
    tokens: int
    window: int = WINDOW

    @property
    def windows(self) -> int:
        """How many windows it has; they overlap, so that a stretch lies in one."""
        return self.tokens // self.window + 1


@dataclass(frozen=True, slots=True, eq=False)
class PieceTable:
    """The rows of a shard as stretches.

    Attributes:
        offsets: int64 [rows + 1]: row r holds the stretches offsets[r] up to offsets[r + 1].
        stretches: ``STRETCH`` [P]; those of a row make up its length exactly.
        joined: bool [P]: a stretch goes on with the document of the one before it; None: none does.
    """

    offsets: Places
    stretches: NDArray[Any]
    joined: NDArray[np.bool_] | None = None


def lay_out(
    offsets: Places,
    starts: Places,
    lengths: Places,
    joined: NDArray[np.bool_] | None,
    shape: RowShape,
    shard: ShardSize,
) -> PieceTable:
    """Pieces of text as stretches, checked once and for all: no later copy leaves the shard.

    Args:
        offsets: int64 [rows + 1], as in ``PackingPlan``.
        starts: int64 [P], in tokens from the shard's first.
        lengths: int64 [P], text alone.
        joined: bool [P], as in ``PieceTable``.
        shape: of a row.
        shard: that they lie in.

    Raises:
        DataError: a piece outside the shard, or a row that holds nothing or too much.
        RecipeError: rows longer than a window.
    """
    if shape.length > shard.window:
        msg = f"data.length {shape.length}: expected {shard.window} or fewer"
        raise RecipeError(msg)
    before: Any = shape.before if joined is None else np.where(joined, 0, shape.before)
    sizes = lengths + before + (shape.overhead - shape.before)
    fits = len(offsets) > 1 and offsets[0] == 0 and offsets[-1] == len(starts)
    fits = fits and bool((np.diff(offsets) > 0).all() and (starts >= 0).all())
    fits = fits and bool((lengths > 0).all() and (starts + lengths <= shard.tokens).all())
    padding = np.zeros_like(sizes)
    if fits:
        padding[offsets[1:] - 1] = shape.length - np.add.reduceat(sizes, offsets[:-1])
    if not fits or (padding < 0).any():
        msg = f"{shard.name}: its packing plan does not fit it; remove the folder of kept plans"
        raise DataError(msg)
    sizes += padding
    begins = starts - before
    table = np.empty(len(starts), STRETCH)
    table["size"] = sizes
    table["padding"] = padding + EDGE * ((begins < 0) | (begins + sizes > shard.tokens))
    table["window"] = np.maximum(begins, 0) // shard.window
    table["offset"] = begins - table["window"].astype(np.int64) * shard.window
    table.flags.writeable = False
    return PieceTable(offsets, table, joined)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a shard holds for each of its tokens: their ids, or their annotations.

    Attributes:
        size: of the shard.
        first_window: the number of its first window among those of the batch.
        whole: all of it; None where it is not mapped.
        read: (starts, lengths), int64 [k] in tokens -> that, end to end.
    """

    size: ShardSize
    first_window: int
    whole: NDArray[Any] | None
    read: Callable[[Places, Places], NDArray[Any]]

    def begins(self, stretches: NDArray[Any]) -> Places:
        """First tokens of stretches, int64 [k]; some below 0 at the shard's edge."""
        window = stretches["window"].astype(np.int64) - self.first_window
        found: Places = window * self.size.window + stretches["offset"]
        return found

    def one(self, begin: int, tokens: int, itemsize: int) -> bytes:
        """The bytes of a stretch; zeros beyond the shard's edges."""
        first, stop = max(begin, 0), min(begin + tokens, self.size.tokens)
        if self.whole is None:
            inside = self.read(np.array([first]), np.array([stop - first]))
        else:
            inside = self.whole[first:stop]
        outside = bytes((first - begin) * itemsize), bytes((begin + tokens - stop) * itemsize)
        return outside[0] + inside.tobytes() + outside[1]


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Stretches end to end.

    Attributes:
        values: of all of them, flat, writable.
        begins: int64 [P], where each begins in it.
    """

    values: NDArray[Any]
    begins: Places


def gather(stretches: NDArray[Any], shards: Sequence[Stored], dtype: np.dtype[Any]) -> Gathered:
    """Copy stretches of shards.

    Args:
        stretches: ``STRETCH`` [P] of ``lay_out``, windows counted through the shards.
        shards: by ``first_window``, from 0 up.
        dtype: of what is read.
    """
    import pyarrow as pa

    apart = np.flatnonzero(
        (stretches["padding"] >= EDGE) | (stretches["size"] <= INLINE // dtype.itemsize)
    )
    views = stretches.copy()
    buffers: list[pa.Buffer | None] = [None, pa.py_buffer(views)]
    for shard in shards:
        if shard.whole is None:
            buffers += _read_now(stretches, views, shard)
        else:
            buffers += _windows(shard, shard.whole)
    if dtype.itemsize > 1:
        views["size"] *= dtype.itemsize
        views["offset"] *= dtype.itemsize
    if len(apart):
        buffers.append(_copy_one_by_one(stretches, views, apart, shards, dtype.itemsize))
    array = pa.Array.from_buffers(pa.binary_view(), len(views), buffers, null_count=0)
    _, begins, values = array.cast(pa.large_binary()).buffers()
    ends = np.frombuffer(begins, np.int64, len(views) + 1) // dtype.itemsize
    return Gathered(np.frombuffer(values, dtype, int(ends[-1])), ends[:-1])


def _windows(shard: Stored, whole: NDArray[Any]) -> "list[pa.Buffer]":
    """A mapped shard in windows, each with what begins in it."""
    import pyarrow as pa

    step, array = shard.size.window, np.asarray(whole)
    if len(array) != shard.size.tokens:
        msg = f"{shard.size.name}: {len(array)} tokens, expected {shard.size.tokens}"
        raise DataError(msg)
    return [
        pa.py_buffer(array[number * step : (number + 2) * step - 1])
        for number in range(shard.size.windows)
    ]


def _read_now(stretches: NDArray[Any], views: NDArray[Any], shard: Stored) -> "list[pa.Buffer]":
    """What stretches need of a shard that is not mapped; their views are turned to it."""
    import pyarrow as pa

    last = shard.first_window + shard.size.windows
    window = stretches["window"]
    inside = (window >= shard.first_window) & (window < last) & (stretches["padding"] < EDGE)
    own = np.flatnonzero(inside)
    sizes = stretches["size"][own].astype(np.int64)
    read = shard.read(shard.begins(stretches[own]), sizes)
    views["window"][own] = shard.first_window
    views["offset"][own] = np.cumsum(sizes) - sizes
    return [
        pa.py_buffer(np.ascontiguousarray(read)),
        *[pa.py_buffer(b"")] * (shard.size.windows - 1),
    ]


def _copy_one_by_one(
    stretches: NDArray[Any],
    views: NDArray[Any],
    apart: Places,
    shards: Sequence[Stored],
    itemsize: int,
) -> "pa.Buffer":
    """Stretches over a shard's edge, and those so short that a view holds their bytes itself."""
    import pyarrow as pa

    made, kept, used = [], [], 0
    number = shards[-1].first_window + shards[-1].size.windows
    firsts = np.array([shard.first_window for shard in shards])
    owners = np.searchsorted(firsts, stretches["window"][apart], "right") - 1
    begins, sizes = np.empty(len(apart), np.int64), stretches["size"][apart].tolist()
    for owner in np.unique(owners).tolist():
        begins[owners == owner] = shards[owner].begins(stretches[apart[owners == owner]])
    for owner, begin, size in zip(owners.tolist(), begins.tolist(), sizes, strict=True):
        content = shards[owner].one(begin, size, itemsize)
        if len(content) <= INLINE:
            made.append(_INLINE_VIEW.pack(len(content), content))
        else:
            made.append(_BUFFER_VIEW.pack(len(content), 0, number, used))
            kept.append(content)
            used += len(content)
    views[apart] = np.frombuffer(b"".join(made), STRETCH)
    return pa.py_buffer(b"".join(kept))
