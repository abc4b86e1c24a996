"""Many stretches of many shards, end to end in one array, copied by Arrow's C++ loop.

A stretch is described in 16 bytes, as in an Arrow ``binary_view`` array, so that a batch of them is
taken from a table by one index array, and its copy is one cast. A stretch is wider than the text in
it by the special tokens around it and the padding behind it: there it copies what happens to stand
beside the text, and special ids are written over it afterwards. That way one copy fills a row.
"""

import struct
from bisect import bisect_right
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
"""In tokens: all of it; its padding, and flags; where it begins, from its window's begin."""

APART = 1 << 30
"""Flag of a stretch over its shard's edge, or so short that Arrow keeps it in the view itself."""

JOINED = 1 << 29
"""Flag of a stretch that goes on with the document of the one before it."""

PADDING = JOINED - 1
"""Mask of what is no flag."""

WINDOW = 1 << 28
"""Tokens from one window of a shard to the next: a view's offset has 31 bits, in bytes."""

INLINE = 12
"""Arrow keeps so many bytes or fewer inside the view."""

_WHOLE = np.dtype(np.complex128)
"""Any number of 16 bytes: records are copied field by field."""

_INLINE_VIEW = struct.Struct("<i12s")
_BUFFER_VIEW = struct.Struct("<iiii")
_STRETCHES = 1 << 26
"""Stretches from one window of a table to the next: 1 GiB."""

_STRETCH_SHIFT, _WINDOW_SHIFT = 4, 26
"""2**4 bytes a stretch, 2**26 stretches a window. Shifts, as numpy divides slowly."""


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What the stretches of a shard must stay within.

    Attributes:
        name: for errors.
        tokens: how many it has.
        itemsize: bytes of one.
        first_window: the number of its first window among those of all shards.
        window: tokens, see ``WINDOW``.
    """

    name: str
    tokens: int
    itemsize: int
    first_window: int = 0
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
    """

    offsets: Places
    stretches: NDArray[Any]


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
        joined: bool [P]: a piece goes on with the document of the one before it; None: none does.
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
    apart = (begins < 0) | (begins + sizes > shard.tokens) | (sizes * shard.itemsize <= INLINE)
    window = np.maximum(begins, 0) // shard.window
    table = np.empty(len(starts), STRETCH)
    table["size"] = sizes
    table["padding"] = padding + APART * apart + (0 if joined is None else JOINED * joined)
    table["window"] = shard.first_window + window
    table["offset"] = begins - window * shard.window
    table.flags.writeable = False
    return PieceTable(offsets, table)


def join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stretches one after the other."""
    return np.concatenate([part.view(_WHOLE) for part in parts]).view(STRETCH)


def take_rows(tables: Sequence[PieceTable], table: Places, rows: Places) -> PieceTable:
    """Rows of tables, int64 [n] each, as a table of their own, in that order.

    ``table`` says which one a row stands in. Copied like tokens: a row's stretches are one piece of
    a table, and take a multiple of 16 bytes.
    """
    import pyarrow as pa

    # Table by table; numbers of 16 bits are sorted in linear time.
    order = np.argsort(table.astype(np.uint16), kind="stable")
    sorted_rows = rows.take(order)
    bounds = np.append(0, np.cumsum(np.bincount(table, minlength=len(tables)))).tolist()
    first, stop = np.empty_like(rows), np.empty_like(rows)
    base = np.zeros_like(rows)
    buffers: list[pa.Buffer] = []
    for number, each in enumerate(tables):
        part = slice(bounds[number], bounds[number + 1])
        each.offsets.take(sorted_rows[part], out=first[part], mode="clip")
        each.offsets.take(sorted_rows[part] + 1, out=stop[part], mode="clip")
        base[part] = len(buffers)
        buffers += _windows(each.stretches, _STRETCHES)
    views = np.empty((len(rows), 2), np.int64)
    # Two numbers of 32 bits in one of 64: size, nothing; window, offset.
    views[order, 0] = (stop - first) << _STRETCH_SHIFT
    base += first >> _WINDOW_SHIFT
    base += (first & (_STRETCHES - 1)) << (32 + _STRETCH_SHIFT)
    views[order, 1] = base
    array = pa.Array.from_buffers(
        pa.binary_view(), len(views), [None, pa.py_buffer(views), *buffers], null_count=0
    )
    _, ends, values = array.cast(pa.large_binary()).buffers()
    offsets = np.frombuffer(ends, np.int64, len(views) + 1) >> _STRETCH_SHIFT
    return PieceTable(offsets, np.frombuffer(values, STRETCH, int(offsets[-1])))


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a shard holds for each of its tokens: their ids, or their annotations.

    Attributes:
        size: of the shard.
        whole: all of it; None where it is not mapped.
        read: (starts, lengths), int64 [k] in tokens -> that, end to end.
    """

    size: ShardSize
    whole: NDArray[Any] | None
    read: Callable[[Places, Places], NDArray[Any]]

    def begins(self, stretches: NDArray[Any]) -> Places:
        """First tokens of stretches, int64 [k]; some below 0 at the shard's edge."""
        window = stretches["window"].astype(np.int64) - self.size.first_window
        found: Places = window * self.size.window + stretches["offset"]
        return found

    def one(self, begin: int, tokens: int, itemsize: int) -> bytes:
        """The bytes of a stretch; zeros beyond the shard's edges."""
        first, stop = max(begin, 0), min(begin + tokens, self.size.tokens)
        if self.whole is None:
            inside = self.read(np.array([first]), np.array([stop - first]))
        else:
            inside = np.asarray(self.whole)[first:stop]
        if stop - first == tokens:
            return inside.tobytes()
        outside = bytes((first - begin) * itemsize), bytes((begin + tokens - stop) * itemsize)
        return outside[0] + inside.tobytes() + outside[1]


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Stretches end to end.

    Attributes:
        values: of all of them, flat, writable.
        ends: int64 [P + 1]: 0, then where each ends in it.
    """

    values: NDArray[Any]
    ends: Places


def gather(stretches: NDArray[Any], shards: Sequence[Stored], dtype: np.dtype[Any]) -> Gathered:
    """Copy stretches of shards.

    Args:
        stretches: ``STRETCH`` [P] of ``lay_out``.
        shards: that they lie in, ascending.
        dtype: of what is read.
    """
    import pyarrow as pa

    flagged = stretches["padding"] >= APART
    if dtype.itemsize == 1:
        flagged |= stretches["size"] <= INLINE
    apart = np.flatnonzero(flagged)
    views = stretches.view(_WHOLE).copy().view(STRETCH)
    last = shards[-1].size
    nothing = pa.py_buffer(b"")
    buffers = [nothing] * (last.first_window + last.windows)
    for shard in shards:
        first = shard.size.first_window
        if shard.whole is None:
            buffers[first] = _read_now(stretches, views, shard)
        else:
            buffers[first : first + shard.size.windows] = _windows(shard.whole, shard.size.window)
    if dtype.itemsize > 1:
        views["size"] *= dtype.itemsize
        views["offset"] *= dtype.itemsize
    if len(apart):
        copied = _copy_one_by_one(stretches[apart], shards, dtype.itemsize, len(buffers))
        views[apart] = copied.views
        buffers.append(pa.py_buffer(copied.content))
    array = pa.Array.from_buffers(
        pa.binary_view(), len(views), [None, pa.py_buffer(views), *buffers], null_count=0
    )
    _, ends, values = array.cast(pa.large_binary()).buffers()
    ended = np.frombuffer(ends, np.int64, len(views) + 1) >> (dtype.itemsize.bit_length() - 1)
    return Gathered(np.frombuffer(values, dtype, int(ended[-1])), ended)


def _windows(array: NDArray[Any], step: int) -> "list[pa.Buffer]":
    """An array in windows, each with what begins in it: a view's offset has 31 bits."""
    import pyarrow as pa

    plain = np.asarray(array)
    return [
        pa.py_buffer(plain[first : first + 2 * step - 1])
        for first in range(0, len(plain) // step * step + 1, step)
    ]


def _read_now(stretches: NDArray[Any], views: NDArray[Any], shard: Stored) -> "pa.Buffer":
    """What stretches need of a shard that is not mapped; their views are turned to it."""
    import pyarrow as pa

    first = shard.size.first_window
    window = stretches["window"]
    inside = (window >= first) & (window < first + shard.size.windows)
    own = np.flatnonzero(inside & (stretches["padding"] < APART))
    sizes = stretches["size"][own].astype(np.int64)
    read = shard.read(shard.begins(stretches[own]), sizes)
    views["window"][own] = first
    views["offset"][own] = np.cumsum(sizes) - sizes
    return pa.py_buffer(np.ascontiguousarray(read))


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """Stretches copied one by one: their views, and the buffer that these point into."""

    views: NDArray[Any]
    content: bytes


def _copy_one_by_one(
    stretches: NDArray[Any], shards: Sequence[Stored], itemsize: int, buffer: int
) -> _Copied:
    """Stretches over a shard's edge, and those so short that a view holds their bytes itself."""
    made, kept, used = [], [], 0
    firsts = [shard.size.first_window for shard in shards]
    for size, _, window, offset in stretches.tolist():
        shard = shards[bisect_right(firsts, window) - 1]
        begin = (window - shard.size.first_window) * shard.size.window + offset
        content = shard.one(begin, size, itemsize)
        if len(content) <= INLINE:
            made.append(_INLINE_VIEW.pack(len(content), content))
        else:
            made.append(_BUFFER_VIEW.pack(len(content), 0, buffer, used))
            kept.append(content)
            used += len(content)
    return _Copied(np.frombuffer(b"".join(made), STRETCH), b"".join(kept))
