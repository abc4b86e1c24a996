"""Read shards: memory-mapped, checked against their manifest before a token is handed out."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.shards.layout import Index, read_index
from data_pipeline.shards.manifest import SUFFIXES, Manifest, ShardRecord, read_manifest

Verify = Literal["sizes", "digests"]
OPEN_SHARDS = 128
"""So many shards are mapped at once: a map holds a file descriptor."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of an open data set.

    Attributes:
        record: its line in the manifest.
        digest: hex digest of its files.
        first: index of its first sequence in the data set.
        index: lengths and starts of its sequences, in tokens.
    """

    record: ShardRecord
    digest: str
    first: int
    index: Index

    @property
    def sequences(self) -> int:
        """Number of its sequences."""
        return self.record.sequences


@dataclass(frozen=True, slots=True)
class _Mapped:
    tokens: NDArray[Any]
    annotations: NDArray[np.uint8]


@dataclass(frozen=True)
class ShardedDataset:
    """A folder of shards, opened and checked.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        shards: in order; sequence indices run through all of them.
        lengths: int32 [sequences], in tokens.
        shard_starts: int64 [shards + 1]: first sequence of each shard, then their total.
    """

    folder: Path
    manifest: Manifest
    shards: tuple[Shard, ...]
    lengths: NDArray[np.int32]
    shard_starts: NDArray[np.int64]
    _mapped: "OrderedDict[int, _Mapped]" = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(
        cls, folder: Path, verify: Verify = "sizes", share: slice = slice(None)
    ) -> "ShardedDataset":
        """Open a shard folder; DataError naming the file that is missing, cut short or changed.

        Args:
            folder: holds manifest.json.
            verify: ``sizes`` checks file sizes and every index; ``digests`` hashes all bytes too.
            share: of the shards' numbers, those that this process hashes; of the others it checks
                sizes and indices.
        """
        manifest = read_manifest(folder)
        if not manifest.shards:
            msg = f"{folder}: its manifest lists no shard; prepare the corpus again"
            raise DataError(msg)
        shards: list[Shard] = []
        first = 0
        hashed = range(len(manifest.shards))[share] if verify == "digests" else ()
        for number, record in enumerate(manifest.shards):
            _check_files(folder, record, "digests" if number in hashed else "sizes")
            index = _checked_index(folder, record, manifest)
            shards.append(Shard(record, record.digest, first, index))
            first += record.sequences
        lengths = np.concatenate([shard.index.lengths for shard in shards])
        lengths.flags.writeable = False
        starts = np.array([shard.first for shard in shards] + [first], np.int64)
        return cls(folder, manifest, tuple(shards), lengths, starts)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the manifest, and so of every byte of the data set."""
        return self.manifest.digest

    @cached_property
    def content(self) -> str:
        """Hex digest of what is read, wherever it came from: see ``Manifest.content``."""
        return self.manifest.content

    def tokens(self, sequence: int) -> NDArray[Any]:
        """Token ids of a sequence, [length] in the shard's dtype; a read-only view."""
        shard, start, stop = self._range(sequence)
        return self._map(shard).tokens[start:stop]

    def annotations(self, sequence: int) -> NDArray[np.uint8]:
        """Annotation bits of a sequence, uint8 [length]; a read-only view."""
        shard, start, stop = self._range(sequence)
        return self._map(shard).annotations[start:stop]

    def shard_tokens(self, shard: int) -> NDArray[Any]:
        """All tokens of a shard, read-only; ``shards[i].index.starts`` says what lies where."""
        return self._map(shard).tokens

    def shard_annotations(self, shard: int) -> NDArray[np.uint8]:
        """All annotations of a shard, uint8, at the same offsets as its tokens; read-only."""
        return self._map(shard).annotations

    def require_tokenizer(self, sha256: str, name: str) -> None:
        """DataError unless the shards were made by the tokenizer with this digest."""
        made_by = self.manifest.tokenizer
        if sha256 != made_by.sha256:
            msg = (
                f"{self.folder}: made by tokenizer {made_by.name} (sha256 {made_by.sha256[:16]}), "
                f"but {name} is {sha256[:16]}; prepare the corpus with the tokenizer of the model"
            )
            raise DataError(msg)

    def _range(self, sequence: int) -> tuple[int, int, int]:
        if not 0 <= sequence < len(self.lengths):
            msg = f"{self.folder}: sequence {sequence}; it has 0 to {len(self.lengths) - 1}"
            raise IndexError(msg)
        shard = int(np.searchsorted(self.shard_starts, sequence, side="right")) - 1
        index = self.shards[shard].index
        local = sequence - self.shards[shard].first
        start = int(index.starts[local])
        return shard, start, start + int(index.lengths[local])

    def _map(self, shard: int) -> _Mapped:
        with self._lock:
            if shard in self._mapped:
                self._mapped.move_to_end(shard)
                return self._mapped[shard]
            record = self.shards[shard].record
            stem = self.folder / record.name
            dtype = self.shards[shard].index.dtype
            mapped = _Mapped(
                np.memmap(stem.with_suffix(".bin"), dtype, "r", shape=(record.tokens,)),
                np.memmap(stem.with_suffix(".ann"), np.uint8, "r", shape=(record.tokens,)),
            )
            self._mapped[shard] = mapped
            if len(self._mapped) > OPEN_SHARDS:
                self._mapped.popitem(last=False)
            return mapped


def describe(folder: Path) -> dict[str, Any]:
    """What a shard folder holds, all digests verified: for ``onward inspect``."""
    data = ShardedDataset.open(folder, verify="digests")
    manifest, lengths = data.manifest, data.lengths
    return {
        "kind": "shards",
        "folder": str(folder),
        "verified": "every byte, by sha256",
        "fingerprint": data.fingerprint,
        "content": data.content,
        "documents": sum(shard.documents for shard in manifest.shards),
        "sequences": len(data),
        "tokens": manifest.tokens,
        "bytes": sum(file.bytes for shard in manifest.shards for file in shard.files.values()),
        "dtype": manifest.dtype,
        "level": manifest.level,
        "annotations": manifest.annotations,
        "tokens_a_sequence": {
            "mean": round(float(lengths.mean()), 1),
            "median": float(np.median(lengths)),
            "largest": int(lengths.max()),
        },
        "tokenizer": manifest.tokenizer.model_dump(mode="json"),
        "shards": [shard.model_dump(mode="json", exclude={"files"}) for shard in manifest.shards],
        "provenance": manifest.provenance,
    }


def _check_files(folder: Path, record: ShardRecord, verify: Verify) -> None:
    for suffix in SUFFIXES:
        path = folder / f"{record.name}{suffix}"
        file = record.files.get(suffix)
        if file is None:
            msg = f"{folder}/manifest.json: {record.name} has no {suffix}; prepare the corpus again"
            raise DataError(msg)
        if not path.is_file():
            msg = f"{path}: missing, though in the manifest; restore it or prepare the corpus again"
            raise DataError(msg)
        size = path.stat().st_size
        if size != file.bytes:
            msg = (
                f"{path}: {size} bytes, but {file.bytes} were written; "
                "it was cut short or changed: restore it or prepare the corpus again"
            )
            raise DataError(msg)
        if verify == "digests" and _sha256(path) != file.sha256:
            msg = (
                f"{path}: its bytes are not those that were written (sha256 differs); "
                "restore it or prepare the corpus again"
            )
            raise DataError(msg)


def _checked_index(folder: Path, record: ShardRecord, manifest: Manifest) -> Index:
    path = folder / f"{record.name}.idx"
    index = read_index(path)
    tokens = int(index.starts[-1]) + int(index.lengths[-1])
    found = (index.dtype.name, len(index.lengths), len(index.documents) - 1, tokens)
    expected = (manifest.dtype, record.sequences, record.documents, record.tokens)
    if found != expected:
        named = "(dtype, sequences, documents, tokens)"
        msg = f"{path}: {named} are {found}, but the manifest says {expected}; prepare again"
        raise DataError(msg)
    sizes = (record.files[".bin"].bytes, record.files[".ann"].bytes)
    if sizes != (tokens * index.dtype.itemsize, tokens):
        msg = f"{path}: {tokens} tokens do not fit .bin and .ann of {sizes} bytes; prepare again"
        raise DataError(msg)
    return index


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
