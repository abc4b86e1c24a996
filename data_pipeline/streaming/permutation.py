"""A keyed permutation of [0, size) at any indices, without tables.

A Feistel network over Z_rows x Z_columns with modular addition (FE1 of Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", 2002) and cycle walking. The rectangle is at most about sqrt(size)
larger than the domain, so that hardly any index has to walk.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 6
LARGEST_SIZE = 1 << 52
"""Up to here a double holds every size exactly, so that the square root is the same everywhere."""

_HALF = np.uint64(32)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
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
    index = np.asarray(indices, np.uint64).reshape(-1)
    sizes = np.broadcast_to(np.asarray(size, np.uint64), shape).reshape(-1)
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape).reshape(-1)
    if index.size and not ((index < sizes).all() and int(sizes.max()) <= LARGEST_SIZE):
        msg = f"an index outside [0, size), or a size above {LARGEST_SIZE}"
        raise ValueError(msg)
    found = _encipher(index, sizes, keys)
    outside = np.flatnonzero(found >= sizes)
    while outside.size:
        found[outside] = _encipher(found[outside], sizes[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside]]
    return found.astype(np.int64).reshape(shape)


def _encipher(index: _Words, sizes: _Words, keys: _Words) -> _Words:
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    columns = (sizes + rows - np.uint64(1)) // rows
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
