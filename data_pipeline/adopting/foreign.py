"""What a ``.bin`` and an ``.idx`` of Megatron-LM, GPT-NeoX, datatrove and the like hold."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.shards.layout import Index, parse_index
from data_pipeline.shards.manifest import NAME, FileRecord

READABLE = ("uint16", "int32")
BLOCK = 1 << 24
"""Bytes that are looked at together; a whole number of tokens of any kind."""


@dataclass(frozen=True, slots=True)
class TokenFiles:
    """A ``.bin`` with its ``.idx``.

    Attributes:
        stem: the path of both, without the suffix.
    """

    stem: Path

    @property
    def name(self) -> str:
        """Of both, without the suffix."""
        return self.stem.name

    def path(self, suffix: str) -> Path:
        """One of them."""
        return self.stem.with_name(f"{self.stem.name}{suffix}")


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A pair of files that was read through.

    Attributes:
        index: its sequences and documents that hold a token.
        bin: size and digest of the ``.bin``.
        idx: the same of the ``.idx``.
    """

    files: TokenFiles
    index: Index
    bin: FileRecord
    idx: FileRecord

    def tokens(self) -> NDArray[Any]:
        """All tokens, mapped."""
        return np.memmap(self.files.path(".bin"), self.index.dtype, "r")

    def documents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First token of each document, and the one behind its last: int64 [documents] each."""
        whole = self.index.by_document()
        return whole.starts, whole.starts + whole.lengths


def find_token_files(location: Path) -> list[TokenFiles]:
    """Those of a folder, by name, or the one with this path (with or without its suffix).

    Raises:
        DataError: none is there, half of one is missing, or its name cannot stand in a manifest.
    """
    if location.is_dir():
        stems = sorted(path.with_suffix("") for path in location.glob("*.idx"))
    else:
        known = location.suffix in {".bin", ".idx"}
        stem = location.with_suffix("") if known else location
        stems = [stem] if stem.with_name(f"{stem.name}.idx").is_file() else []
    if not stems:
        msg = (
            f"{location}: no .idx file there; expected a folder of .bin and .idx files, "
            "or the path of one of them"
        )
        raise DataError(msg)
    found = [TokenFiles(stem) for stem in stems]
    for files in found:
        if not files.path(".bin").is_file():
            msg = f"{files.path('.bin')}: missing, though its .idx is there"
            raise DataError(msg)
        if not re.fullmatch(NAME, files.name):
            msg = (
                f"{files.path('.idx')}: a manifest cannot name it; give it a name of letters, "
                "digits and _ . + = @ - (a link to it will do)"
            )
            raise DataError(msg)
    return found


def survey(files: TokenFiles, vocabulary_size: int) -> Surveyed:
    """Read both files through; DataError naming what is damaged or not of this vocabulary."""
    path = files.path(".idx")
    content = path.read_bytes()
    index = parse_index(content, str(path))
    _require_readable(path, index)
    found = Surveyed(
        files,
        index,
        _scanned(files.path(".bin"), index, vocabulary_size),
        FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    )
    if not index.tokens:
        msg = f"{path}: not one token in it; leave it out"
        raise DataError(msg)
    return found


def _require_readable(path: Path, index: Index) -> None:
    kind = index.dtype.name
    if kind in READABLE:
        return
    if index.dtype.kind == "f":
        why = "which DeepSpeed's writer uses for uint16 (its codes 6 to 8 are its own)"
        msg = f"{path}: its code for the tokens is that of {kind}, {why}; write it with int32"
    else:
        msg = f"{path}: its tokens are {kind}; those of {' or '.join(READABLE)} can be adopted"
    raise DataError(msg)


def _scanned(path: Path, index: Index, vocabulary_size: int) -> FileRecord:
    expected = index.tokens * index.dtype.itemsize
    size = path.stat().st_size
    if size != expected:
        msg = (
            f"{path}: {size} bytes, but its .idx speaks of {expected}: it was cut short, "
            "or belongs to another .idx"
        )
        raise DataError(msg)
    digest, done = hashlib.sha256(), 0
    for block in _blocks(path):
        digest.update(block)
        tokens = np.frombuffer(block, index.dtype)
        if tokens.max() >= vocabulary_size or tokens.min() < 0:
            at = int(np.flatnonzero((tokens >= vocabulary_size) | (tokens < 0))[0])
            msg = (
                f"{path}: token {done + at} is id {tokens[at]}, but the vocabulary has "
                f"{vocabulary_size} ids; name the tokenizer that made these files"
            )
            raise DataError(msg)
        done += len(tokens)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block
