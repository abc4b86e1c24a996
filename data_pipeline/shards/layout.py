"""The MMIDIDX index file as Megatron-core lays it out: header, lengths, byte pointers, documents.

Dtype codes 6 to 8 differ between Megatron (8 = uint16) and DeepSpeed's copy of the format
(6 = uint16, 8 = uint64); these are Megatron's.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
INDEX_VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype[Any]] = {
    1: np.dtype("uint8"),
    2: np.dtype("int8"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
LARGEST_UINT16_VOCABULARY = 65500
"""Megatron's own limit: above it tokens are int32."""


@dataclass(frozen=True, slots=True)
class Index:
    """What an ``.idx`` file says about its ``.bin``.

    Attributes:
        dtype: of the tokens.
        lengths: int32 [sequences], in tokens.
        starts: int64 [sequences], in tokens from the start of the ``.bin``.
        documents: int64 [documents + 1]: first sequence of each document, then the total.
    """

    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    starts: NDArray[np.int64]
    documents: NDArray[np.int64]


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest of Megatron's two dtypes that holds every id of the vocabulary."""
    return DTYPE_CODES[8 if vocabulary_size <= LARGEST_UINT16_VOCABULARY else 4]


def index_bytes(
    dtype: np.dtype[Any], lengths: NDArray[np.int32], documents: NDArray[np.int64]
) -> bytes:
    """The contents of an ``.idx`` file for sequences that lie in the ``.bin`` end to end."""
    code = next(code for code, known in DTYPE_CODES.items() if known == dtype)
    sizes = lengths.astype(np.int64) * dtype.itemsize
    pointers = np.concatenate(([0], np.cumsum(sizes)[:-1])) if lengths.size else sizes
    header = HEADER.pack(MAGIC, INDEX_VERSION, code, lengths.size, documents.size)
    return b"".join(
        (
            header,
            lengths.astype("<i4").tobytes(),
            pointers.astype("<i8").tobytes(),
            documents.astype("<i8").tobytes(),
        )
    )


def read_index(path: Path) -> Index:
    """Read and check an ``.idx`` file; DataError naming it when it contradicts itself."""
    content = path.read_bytes()
    dtype, sequences, documents = _read_header(path, content)
    expected = HEADER.size + sequences * (4 + 8) + documents * 8
    if len(content) != expected:
        msg = (
            f"{path}: {len(content)} bytes, but {sequences} sequences and {documents - 1} "
            f"documents take {expected}; make the shards again"
        )
        raise DataError(msg)
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    marks = np.frombuffer(content, "<i8", documents, HEADER.size + 12 * sequences)
    starts = np.zeros(sequences, np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
    if (lengths < 1).any() or not np.array_equal(starts * dtype.itemsize, pointers):
        msg = f"{path}: its pointers do not match its sequence lengths; make the shards again"
        raise DataError(msg)
    if marks[0] != 0 or marks[-1] != sequences or (np.diff(marks) < 1).any():
        msg = f"{path}: its documents do not cover its {sequences} sequences; make the shards again"
        raise DataError(msg)
    return Index(dtype, lengths, starts, marks)


def _read_header(path: Path, content: bytes) -> tuple[np.dtype[Any], int, int]:
    """Dtype, number of sequences, number of document marks (documents + 1)."""
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        msg = f"{path}: not an MMIDIDX index (it opens with {content[:9]!r})"
        raise DataError(msg)
    _, version, code, sequences, documents = HEADER.unpack_from(content)
    if version != INDEX_VERSION or code not in DTYPE_CODES:
        msg = f"{path}: index version {version}, dtype code {code}; expected version 1, code 1-8"
        raise DataError(msg)
    if sequences < 1 or documents < 2:
        msg = f"{path}: {sequences} sequences and {documents} document marks; expected some of each"
        raise DataError(msg)
    return DTYPE_CODES[code], sequences, documents
