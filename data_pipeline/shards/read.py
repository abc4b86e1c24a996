"""Read shards, here or remote: checked against their manifest before a token is handed out."""

import hashlib
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.shards.cache import CacheConfig
from data_pipeline.shards.choices import Mode, Verify
from data_pipeline.shards.layout import Index, parse_index
from data_pipeline.shards.manifest import Manifest, ShardRecord, Suffix
from data_pipeline.shards.opened import OPENED, FileKey, Form, Payload, opened
from data_pipeline.shards.places import LocalPlace, Place, RemotePlace, require_digest
from data_pipeline.storage import is_url, mask_secrets

FETCHERS = 8
"""Threads that fetch the indices of a remote data set."""
_ANNOTATION = np.dtype(np.uint8)
_owners = count()


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


@dataclass(frozen=True)
class ShardedDataset:
    """A folder of shards, opened and checked. Safe to read from several threads.

    Attributes:
        folder: where it lies: a path, or a URL without its secrets.
        manifest: what it says of itself.
        shards: in order; sequence indices run through all of them.
        lengths: int32 [sequences], in tokens.
        shard_starts: int64 [shards + 1]: first sequence of each shard, then their total.
        mode: how files are read.
    """

    folder: Path | str
    manifest: Manifest
    shards: tuple[Shard, ...]
    lengths: NDArray[np.int32]
    shard_starts: NDArray[np.int64]
    mode: Mode
    _place: Place = field(repr=False)
    _rehash: frozenset[int] = field(repr=False)
    _owner: int = field(default_factory=lambda: next(_owners), repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, OPENED.close_all_of, self._owner)

    @classmethod
    def open(
        cls,
        location: Path | str,
        verify: Verify = "sizes",
        share: slice = slice(None),
        *,
        mode: Mode = "mmap",
        cache: CacheConfig = CacheConfig(),  # noqa: B008 -- frozen
    ) -> "ShardedDataset":
        """Open a shard folder; DataError naming the file that is missing, cut short or changed.

        Every index is read, and checked by its digest. Of a remote folder nothing else is fetched
        before it is used, and all that is fetched is checked by its digest.

        Args:
            location: a path, or the URL of a folder; it holds manifest.json.
            verify: ``sizes`` checks the sizes of the other files; ``digests`` hashes all bytes
                too, and does not trust what lies in the cache.
            share: of the shards' numbers, those that this process hashes; of remote ones it
                hashes whatever it reads, as the caches of other machines are not its own.
            mode: ``pread`` for file systems that cannot map files into memory.
            cache: where remote shards are kept.
        """
        place: Place
        if is_url(location):
            place = RemotePlace(str(location), cache.open(OPENED.close_oldest))
        else:
            place = LocalPlace(Path(location))
        manifest = place.manifest()
        numbers = range(len(manifest.shards))
        own = numbers if place.remote else numbers[share]
        hashed = frozenset(own if verify == "digests" else ())
        for number, record in enumerate(manifest.shards):
            for suffix, file in record.files.items():
                place.check(f"{record.name}{suffix}", file, hashed=number in hashed)
        shards = _with_indices(place, manifest)
        lengths = np.concatenate([shard.index.lengths for shard in shards])
        lengths.flags.writeable = False
        starts = np.cumsum([0, *(shard.sequences for shard in shards)], dtype=np.int64)
        folder = mask_secrets(str(location)) if place.remote else Path(location)
        return cls(folder, manifest, shards, lengths, starts, mode, place, hashed)

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

    @property
    def remote(self) -> bool:
        """Whether it lies at a URL: its shards are fetched, and kept in a cache."""
        return self._place.remote

    @property
    def mapped(self) -> bool:
        """Whether whole shards are arrays that cost nothing; if not, ``gather`` what is needed."""
        return self.mode == "mmap"

    @property
    def annotated(self) -> bool:
        """Whether its tokens have annotations."""
        return bool(self.manifest.annotations)

    def tokens(self, sequence: int) -> NDArray[Any]:
        """Token ids of a sequence, [length] in the shards' dtype; read-only."""
        return self._stretch(sequence, ".bin")

    def annotations(self, sequence: int) -> NDArray[np.uint8]:
        """Annotation bits of a sequence, uint8 [length]; read-only."""
        return self._stretch(sequence, ".ann")

    def shard_tokens(self, shard: int) -> NDArray[Any]:
        """All tokens of a shard, read-only; ``shards[i].index.starts`` says what lies where.

        Mapped, it is a view of the file; by pread all of it is read each time.
        """
        return self._payload(shard, ".bin").whole()

    def shard_annotations(self, shard: int) -> NDArray[np.uint8]:
        """All annotations of a shard, uint8, at the same offsets as its tokens; read-only."""
        return self._payload(shard, ".ann").whole()

    def gather(
        self, shard: int, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Stretches of a shard's tokens end to end, [sum of lengths] in the shards' dtype.

        Args:
            shard: its number.
            starts: int64 [P], first token of each stretch in the shard.
            lengths: int64 [P], in tokens.
        """
        return self._payload(shard, ".bin").gather(starts, lengths)

    def gather_annotations(
        self, shard: int, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """The same of its annotations, uint8."""
        return self._payload(shard, ".ann").gather(starts, lengths)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch shards that will be read soon, in this thread, and keep them from eviction.

        Of local shards nothing has to be fetched.
        """
        if self._place.remote:
            for shard in shards:
                for suffix in self.manifest.suffixes:
                    if suffix != ".idx":
                        self._payload(shard, suffix)

    def require_tokenizer(self, sha256: str, name: str) -> None:
        """DataError unless the shards were made by the tokenizer with this digest."""
        made_by = self.manifest.tokenizer
        if sha256 != made_by.sha256:
            msg = (
                f"{self.folder}: made by tokenizer {made_by.name} (sha256 {made_by.sha256[:16]}), "
                f"but {name} is {sha256[:16]}; prepare the corpus with the tokenizer of the model"
            )
            raise DataError(msg)

    def _stretch(self, sequence: int, suffix: Suffix) -> NDArray[Any]:
        if not 0 <= sequence < len(self.lengths):
            msg = f"{self.folder}: sequence {sequence}; it has 0 to {len(self.lengths) - 1}"
            raise IndexError(msg)
        shard = int(np.searchsorted(self.shard_starts, sequence, side="right")) - 1
        index = self.shards[shard].index
        local = sequence - self.shards[shard].first
        start, length = int(index.starts[local]), int(index.lengths[local])
        payload = self._payload(shard, suffix)
        if self.mapped:
            return payload.whole()[start : start + length]
        found = payload.gather(np.array([start]), np.array([length]))
        found.flags.writeable = False
        return found

    def _payload(self, shard: int, suffix: Suffix) -> Payload:
        if suffix == ".ann" and not self.annotated:
            msg = (
                f"{self.folder}: these shards have no annotations, and so no word starts; adopt "
                "them with --annotate, or prepare the corpus"
            )
            raise DataError(msg)
        key = FileKey(self._owner, shard, suffix)
        return OPENED.get(key, lambda: self._opened(shard, suffix))

    def _opened(self, shard: int, suffix: Suffix) -> Payload:
        record, index = self.shards[shard].record, self.shards[shard].index
        file = f"{record.name}{suffix}"
        stream = self._place.open(file, record.files[suffix], hashed=shard in self._rehash)
        dtype = index.dtype if suffix == ".bin" else _ANNOTATION
        return opened(stream, self._place.named(file), record, Form(self.mode, dtype))


def find_shards(location: str, locate: Callable[[str], Path]) -> Path | str:
    """Where to open a location of a recipe: a URL as it is, a path or ``stage:NAME`` located."""
    return location if is_url(location) else locate(location)


def describe(location: Path | str) -> dict[str, Any]:
    """What a shard folder holds, all digests verified: for ``onward inspect``."""
    data = ShardedDataset.open(location, verify="digests")
    data.prefetch(range(len(data.shards)))  # of a remote one this verifies
    manifest, lengths = data.manifest, data.lengths
    return {
        "kind": "shards",
        "folder": str(data.folder),
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


def _with_indices(place: Place, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards with their indices, read several at a time when they have to be fetched."""
    if place.remote:
        with ThreadPoolExecutor(FETCHERS) as pool:
            indices = list(
                pool.map(lambda record: _index(place, record, manifest), manifest.shards)
            )
    else:
        indices = [_index(place, record, manifest) for record in manifest.shards]
    shards: list[Shard] = []
    first = 0
    for record, index in zip(manifest.shards, indices, strict=True):
        shards.append(Shard(record, record.digest, first, index))
        first += record.sequences
    return tuple(shards)


def _index(place: Place, record: ShardRecord, manifest: Manifest) -> Index:
    file, name = record.files[".idx"], place.named(f"{record.name}.idx")
    # Read whole as it is, so that hashing it costs little; one damaged in the cache is replaced.
    with OPENED.with_room(lambda: place.open(f"{record.name}.idx", file, hashed=True)) as stream:
        content = stream.read()
    require_digest(name, hashlib.sha256(content).hexdigest(), file)
    index = parse_index(content, name)
    found = (index.dtype.name, len(index.lengths), len(index.documents) - 1, index.tokens)
    expected = (manifest.dtype, record.sequences, record.documents, record.tokens)
    if found != expected:
        named = "(dtype, sequences, documents, tokens)"
        msg = f"{name}: {named} are {found}, but the manifest says {expected}; prepare again"
        raise DataError(msg)
    sizes = [record.files[suffix].bytes for suffix in manifest.suffixes if suffix != ".idx"]
    if sizes != [record.tokens * index.dtype.itemsize, record.tokens][: len(sizes)]:
        msg = f"{name}: {record.tokens} tokens do not fit .bin and .ann of {sizes} bytes"
        raise DataError(f"{msg}; prepare again")
    return index
