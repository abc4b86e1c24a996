"""A keyed permutation of [0, size) at any indices, without tables.

A Feistel network over Z_rows x Z_columns with modular addition (FE1 of Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", 2002) and cycle walking. The rectangle is at most about sqrt(size)
larger than the domain, so that hardly any index has to walk. A round adds a function of one half to
the other; for one key it is tabulated, as a half has few values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 6
LARGEST_SIZE = 1 << 52
"""Up to here a double holds every size exactly, so that the square root is the same everywhere."""

_LARGEST_TABULATED = 1 << 34
"""Above it tables would take more than 4 MB a key, and longer to make than they save."""

_HALF = np.uint64(32)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_OUTSIDE = f"an index outside [0, size), or a size above {LARGEST_SIZE}"
_Words = NDArray[np.uint64]


def permute(indices: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Where the permutation with this key sends the indices.

    Args:
        indices: integers in [0, size), of any shape.
        size: of the domain, 1 to 2**52; broadcast to the indices.
        key: 64-bit integers from a hash; broadcast to the indices.

    Returns:
        int64 of the indices' shape, a bijection of [0, size) for each pair of size and key.
    """
    shape = np.shape(indices)
    if np.ndim(size) == 0 and np.ndim(key) == 0 and 0 < int(np.asarray(size)) < _LARGEST_TABULATED:
        return _tabulated(np.asarray(indices), int(np.asarray(size)), int(np.asarray(key)))
    index = np.asarray(indices, np.uint64).reshape(-1)
    sizes = np.broadcast_to(np.asarray(size, np.uint64), shape).reshape(-1)
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape).reshape(-1)
    if index.size and not ((index < sizes).all() and int(sizes.max()) <= LARGEST_SIZE):
        raise ValueError(_OUTSIDE)
    found = _encipher(index, sizes, keys)
    outside = np.flatnonzero(found >= sizes)
    while outside.size:
        found[outside] = _encipher(found[outside], sizes[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside]]
    return found.astype(np.int64).reshape(shape)


def permutations(size: int, keys: Sequence[int]) -> NDArray[np.int64]:
    """What ``permute`` makes of all of [0, size) with each of some keys: int64 [keys, size]."""
    tables = _make_tables(size, keys)
    index = np.broadcast_to(np.arange(size, dtype=np.uint64), (len(keys), size))
    first = np.arange(len(keys), dtype=np.uint64)[:, None] * np.uint64(tables.added.shape[-1])
    found = _walk(index, tables, first)
    outside = np.nonzero(found >= size)
    while outside[0].size:
        found[outside] = _walk(found[outside], tables, first[outside[0], 0])
        still = found[outside] >= size
        outside = outside[0][still], outside[1][still]
    return found.view(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What each round adds.

    Attributes:
        rows: of the rectangle.
        columns: of the rectangle.
        added: uint64 [ROUNDS, keys, longer side]: by the value of the half that is looked at.
    """

    rows: np.uint64
    columns: np.uint64
    added: _Words


@lru_cache(maxsize=64)
def _tables(size: int, key: int) -> _Tables:
    """Kept, since an epoch of a source is asked for again and again."""
    return _make_tables(size, [key])


def _make_tables(size: int, keys: Sequence[int]) -> _Tables:
    rows, columns = (int(side[0]) for side in _rectangle(np.array([size], np.uint64)))
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None]
    used = np.array(keys, np.uint64) + rounds * _STEP
    modulus = np.array([columns if n % 2 else rows for n in range(ROUNDS)], np.uint64)
    hashed = _hash(np.arange(max(rows, columns), dtype=np.uint64), used[:, :, None])
    return _Tables(np.uint64(rows), np.uint64(columns), (hashed * modulus[:, None, None]) >> _HALF)


def _tabulated(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    index = indices.reshape(-1)
    if index.size and not (index.min() >= 0 and index.max() < size):
        raise ValueError(_OUTSIDE)
    tables = _tables(size, key)
    found = _walk(index.astype(np.uint64), tables)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = _walk(found[outside], tables)
        outside = outside[found[outside] >= size]
    return found.view(np.int64).reshape(indices.shape)


def _walk(index: _Words, tables: _Tables, first: _Words | None = None) -> _Words:
    """``_encipher`` by tables; ``first``: where each index's own key begins in them."""
    rows, columns = tables.rows, tables.columns
    row = index // columns
    column = index - row * columns
    for number, added in enumerate(tables.added):
        half, other, modulus = (column, row, columns) if number % 2 else (row, column, rows)
        place = other if first is None else other + first
        half += added.take(place.view(np.int64))
        # Below the modulus the difference wraps around to something larger.
        np.minimum(half, half - modulus, out=half)
    row *= columns
    row += column
    return row


def _rectangle(sizes: _Words) -> tuple[_Words, _Words]:
    """Rows and columns: a square, or one column less."""
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    return rows, (sizes + rows - np.uint64(1)) // rows


def _encipher(index: _Words, sizes: _Words, keys: _Words) -> _Words:
    rows, columns = _rectangle(sizes)
    row = index // columns
    column = index - row * columns
    for number in range(ROUNDS):
        keys = keys + _STEP
        if number % 2:
            column = _add(column, _hash(row, keys), columns)
        else:
            row = _add(row, _hash(column, keys), rows)
    found: _Words = row * columns + column
    return found


def _hash(half: _Words, keys: _Words) -> _Words:
    """32 well-mixed bits of a half and a round's key."""
    mixed = (half ^ keys) * _MIX
    mixed ^= mixed >> _HALF
    mixed *= _STEP
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MIX
    return mixed >> _HALF


def _add(half: _Words, hashed: _Words, modulus: _Words) -> _Words:
    """(half + a number below modulus taken from 32 bits) modulo modulus, without a division."""
    moved = half + ((hashed * modulus) >> _HALF)
    return np.where(moved >= modulus, moved - modulus, moved)
