"""Write sequences into shards; a file gets its name when it is complete, the manifest last."""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.disk import disk_errors
from data_pipeline.shards.choices import SHARD_TOKENS
from data_pipeline.shards.layout import index_bytes, token_dtype
from data_pipeline.shards.manifest import (
    FILE,
    SUFFIXES,
    Manifest,
    ShardRecord,
    TokenizerRecord,
)
from data_pipeline.shards.output import HashedOutput


class ShardWriter:
    """Appends sequences (one a document, without special tokens) to a folder of shards.

    Where one shard ends and the next begins depends on the sequences alone, not on how they
    are grouped into calls. Old shards in the folder are removed, their manifest first.
    """

    def __init__(
        self, folder: Path, tokenizer: TokenizerRecord, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocabulary_size)
        self.shard_tokens = shard_tokens
        self.tokens = 0
        self._shards: list[ShardRecord] = []
        self._open: _OpenShard | None = None
        prepare_folder(folder)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.abandon()
            self._open = None

    def write(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[np.int32],
        annotations: NDArray[np.uint8],
    ) -> None:
        """Append sequences that lie end to end.

        Args:
            tokens: integers [T], each below the tokenizer's vocabulary size.
            lengths: [sequences], at least 1 each, summing to T.
            annotations: [T], the bits of ``.ann``.
        """
        _check(self.folder, self.tokenizer.vocabulary_size, (tokens, lengths, annotations))
        ends = np.cumsum(lengths, dtype=np.int64)
        first = done = 0
        while first < len(lengths):
            shard = self._open = self._open or _OpenShard(
                self.folder, len(self._shards), self.dtype
            )
            room = self.shard_tokens - shard.tokens
            last = min(int(np.searchsorted(ends, done + room)) + 1, len(lengths))
            stop = int(ends[last - 1])
            shard.append(tokens[done:stop], lengths[first:last], annotations[done:stop])
            if shard.tokens >= self.shard_tokens:
                self._close_shard()
            first, done = last, stop
        self.tokens += done

    def finish(self, provenance: dict[str, Any]) -> Manifest:
        """Close the last shard and write the manifest; DataError when nothing was written."""
        if self._open is not None:
            self._close_shard()
        return write_manifest(self.folder, self.tokenizer, self._shards, provenance)

    def _close_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None


Piece = tuple[NDArray[Any], NDArray[np.int32], NDArray[np.uint8]]
"""Tokens, lengths and annotations of sequences, as for ``ShardWriter.write``."""


def prepare_folder(folder: Path) -> None:
    """Make a folder for shards; old ones in it are removed, their manifest first."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)


def write_shard(
    folder: Path, number: int, vocabulary_size: int, pieces: Iterable[Piece]
) -> ShardRecord:
    """Write one shard of a folder, as ``ShardWriter`` does; its files get their names together."""
    shard = _OpenShard(folder, number, token_dtype(vocabulary_size))
    try:
        for tokens, lengths, annotations in pieces:
            _check(folder, vocabulary_size, (tokens, lengths, annotations))
            shard.append(tokens, lengths, annotations)
        return shard.close()
    finally:
        shard.abandon()


def write_manifest(
    folder: Path,
    tokenizer: TokenizerRecord,
    shards: Sequence[ShardRecord],
    provenance: dict[str, Any],
) -> Manifest:
    """Write the manifest of shards that are there; DataError when there are none."""
    if not shards:
        msg = f"{folder}: not one document to write; an empty corpus cannot be read later"
        raise DataError(msg)
    manifest = Manifest(
        tokenizer=tokenizer,
        dtype="uint16" if token_dtype(tokenizer.vocabulary_size).itemsize == 2 else "int32",
        shards=list(shards),
        # A round through JSON, so that the digest is that of what will be read back.
        provenance=json.loads(json.dumps(provenance)),
    ).signed()
    text = manifest.model_dump_json(indent=1) + "\n"
    with HashedOutput(folder / FILE) as output:
        output.write(text.encode())
    return manifest


def _check(folder: Path, vocabulary_size: int, piece: Piece) -> None:
    tokens, lengths, annotations = piece
    total = int(lengths.sum(dtype=np.int64))
    if not total == len(tokens) == len(annotations) or (lengths < 1).any():
        msg = (
            f"{folder}: lengths sum to {total} for {len(tokens)} tokens and "
            f"{len(annotations)} annotations; expected the same, and no empty sequence"
        )
        raise DataError(msg)
    if total and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
        msg = (
            f"{folder}: token ids from {tokens.min()} to {tokens.max()}, but the "
            f"vocabulary has {vocabulary_size}"
        )
        raise DataError(msg)


class _OpenShard:
    """The shard that is being written; only its lengths are held in memory."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype[Any]) -> None:
        self.name = f"shard-{number:05d}"
        self.folder = folder
        self.dtype = dtype
        self.tokens = 0
        self.lengths: list[NDArray[np.int32]] = []
        self.idx: HashedOutput | None = None
        with ExitStack() as undo:
            self.bin = HashedOutput(folder / f"{self.name}.bin")
            undo.callback(self.bin.abandon)
            self.ann = HashedOutput(folder / f"{self.name}.ann")
            undo.pop_all()

    def append(
        self, tokens: NDArray[Any], lengths: NDArray[np.int32], annotations: NDArray[np.uint8]
    ) -> None:
        self.bin.write(np.ascontiguousarray(tokens, self.dtype).tobytes())
        self.ann.write(np.ascontiguousarray(annotations, np.uint8).tobytes())
        self.lengths.append(np.array(lengths, np.int32))
        self.tokens += len(tokens)

    def close(self) -> ShardRecord:
        lengths = np.concatenate(self.lengths)
        documents = np.arange(len(lengths) + 1, dtype=np.int64)
        idx = self.idx = HashedOutput(self.folder / f"{self.name}.idx")
        idx.write(index_bytes(self.dtype, lengths, documents))
        for output in (self.bin, idx, self.ann):
            output.settle()
        return ShardRecord(
            name=self.name,
            sequences=len(lengths),
            documents=len(lengths),
            tokens=self.tokens,
            files={".bin": self.bin.commit(), ".idx": idx.commit(), ".ann": self.ann.commit()},
        )

    def abandon(self) -> None:
        """Leave no file under a temporary name; what has its final one stays."""
        for output in (self.bin, self.idx, self.ann):
            if output is not None:
                output.abandon()


def _clear(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        name = path.name.removeprefix(".").removesuffix(".tmp")
        if name == FILE or (name.startswith("shard-") and Path(name).suffix in SUFFIXES):
            path.unlink()
