"""The MMIDIDX index file as Megatron-core lays it out: header, lengths, byte pointers, documents.

Dtype codes 6 to 8 differ between Megatron (8 = uint16) and DeepSpeed's copy of the format
(6 = uint16, 8 = uint64); these are Megatron's.
"""

import struct
from dataclasses import dataclass
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

    @property
    def tokens(self) -> int:
        """Tokens of the whole ``.bin``."""
        return int(self.starts[-1]) + int(self.lengths[-1]) if self.lengths.size else 0

    @property
    def sentences(self) -> bool:
        """Whether some document consists of several sequences."""
        return len(self.documents) - 1 < len(self.lengths)

    def by_document(self) -> "Index":
        """The same with each document as one sequence; DataError for one of 2**31 tokens."""
        if not self.sentences:
            return self
        starts = self.starts[self.documents[:-1]]
        lengths = np.diff(starts, append=self.tokens)
        if lengths.size and lengths.max() > np.iinfo(np.int32).max:
            msg = f"a document of {lengths.max()} tokens; expected fewer than {1 << 31}: split it"
            raise DataError(msg)
        marks = np.arange(len(lengths) + 1, dtype=np.int64)
        return Index(self.dtype, lengths.astype(np.int32), starts, marks)


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


def parse_index(content: bytes, name: str) -> Index:
    """Check what an ``.idx`` file holds; DataError, with the name given, if it contradicts itself.

    Sequences and documents without a token, which other writers make, are left out: nothing can
    be read from them.
    """
    dtype, sequences, documents = _parse_header(content, name)
    expected = HEADER.size + sequences * (4 + 8) + documents * 8
    if len(content) == expected + sequences:
        msg = f"{name}: it holds a mode of each sequence (multimodal data), which is not read"
        raise DataError(msg)
    if len(content) != expected:
        msg = (
            f"{name}: {len(content)} bytes, but {sequences} sequences and {documents - 1} "
            f"documents take {expected}; make the shards again"
        )
        raise DataError(msg)
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    marks = np.frombuffer(content, "<i8", documents, HEADER.size + 12 * sequences)
    starts = np.zeros(sequences, np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
    if (lengths < 0).any() or not np.array_equal(starts * dtype.itemsize, pointers):
        msg = f"{name}: its pointers do not match its sequence lengths; make the shards again"
        raise DataError(msg)
    if marks[0] != 0 or marks[-1] != sequences or (np.diff(marks) < 0).any():
        msg = f"{name}: its documents do not cover its {sequences} sequences; make the shards again"
        raise DataError(msg)
    return _without_empty(Index(dtype, lengths, starts, marks))


def _without_empty(index: Index) -> Index:
    held = index.lengths > 0
    if held.all() and (np.diff(index.documents) > 0).all():
        return index
    before = np.concatenate(([0], np.cumsum(held, dtype=np.int64)))
    return Index(
        index.dtype, index.lengths[held], index.starts[held], np.unique(before[index.documents])
    )


def _parse_header(content: bytes, name: str) -> tuple[np.dtype[Any], int, int]:
    """Dtype, number of sequences, number of document marks (documents + 1)."""
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        msg = f"{name}: not an MMIDIDX index (it opens with {content[:9]!r})"
        raise DataError(msg)
    _, version, code, sequences, documents = HEADER.unpack_from(content)
    if version != INDEX_VERSION or code not in DTYPE_CODES:
        msg = f"{name}: index version {version}, dtype code {code}; expected version 1, code 1-8"
        raise DataError(msg)
    if sequences < 1 or documents < 2:
        msg = f"{name}: {sequences} sequences and {documents} document marks; expected some of each"
        raise DataError(msg)
    return DTYPE_CODES[code], sequences, documents
