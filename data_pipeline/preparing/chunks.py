"""Tokenising as tasks: runs of blocks into files of tokens, and where shards begin in them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.disk import disk_errors
from data_pipeline.preparing.board import Facts, Outcome
from data_pipeline.preparing.decide import Plan
from data_pipeline.shards.layout import token_dtype
from data_pipeline.shards.write import Piece, prepare_folder
from data_pipeline.tokenization.block import EncodeTask, encode_block

SMALLEST_CHUNK, LARGEST_CHUNK = 2 << 20, 64 << 20
CHUNKS = 2048
"""So many chunks a side, of text between these two sizes in bytes."""
SUFFIXES = (".bin", ".ann", ".len")


@dataclass(frozen=True, slots=True)
class EncodeRun:
    """Task: tokenise some blocks of a side.

    Attributes:
        plan: of the side.
        first: number of the first block.
        stop: one behind the last.
        stem: of the chunk's files.
        tokenizer: its folder.
        vocabulary_size: of the tokenizer.
    """

    name: str
    weight: int
    plan: Plan
    first: int
    stop: int
    stem: Path
    tokenizer: Path
    vocabulary_size: int

    def run(self) -> Outcome:
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        files = chunk_files(self.stem)
        with disk_errors(self.stem):
            tokens, annotations, lengths = (path.open("wb") for path in files)
            with tokens, annotations, lengths:
                facts = self._write(tokens, annotations, lengths)
        return Outcome(facts, files)

    def _write(self, tokens: IO[bytes], annotations: IO[bytes], lengths: IO[bytes]) -> Facts:
        texts = characters = sequences = count = 0
        dtype = token_dtype(self.vocabulary_size)
        for block, kept in self.plan.blocks(self.first, self.stop):
            done = encode_block(EncodeTask(block, kept.tobytes(), self.tokenizer))
            encoded = done.encoded
            tokens.write(np.ascontiguousarray(encoded.tokens, dtype).data)
            annotations.write(np.ascontiguousarray(encoded.annotations, np.uint8).data)
            lengths.write(np.ascontiguousarray(encoded.lengths, np.int32).data)
            texts += done.texts
            characters += done.characters
            sequences += len(encoded.lengths)
            count += len(encoded.tokens)
        return {
            "texts": texts,
            "characters": characters,
            "sequences": sequences,
            "tokens": count,
            "told": {"documents": sequences, "tokens": count},
        }


def chunk_files(stem: Path) -> tuple[Path, Path, Path]:
    """Tokens, annotations and lengths (int32) of a chunk."""
    first, second, third = (stem.with_name(f"{stem.name}{suffix}") for suffix in SUFFIXES)
    return first, second, third


def runs_of_blocks(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """(first block, one behind the last, bytes of text) of each chunk of a side."""
    sizes = plan.rows()[:, 4]
    wanted = min(max(int(sizes.sum()) // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
    first = size = 0
    for number, add in enumerate(sizes.tolist(), 1):
        size += add
        if size >= wanted:
            yield first, number, size
            first, size = number, 0
    if size:
        yield first, len(sizes), size


@dataclass(frozen=True, slots=True)
class FindBorders:
    """Task: find where the shards of a side begin and end.

    Attributes:
        stems: of its chunks, in order.
        chunks: what the task of each told.
        shard_tokens: a shard is closed by the sequence that brings it to so many tokens.
        target: folder of the shards; what stands there is removed.
    """

    name: str
    stems: tuple[Path, ...]
    chunks: tuple[Facts, ...]
    shard_tokens: int
    target: Path
    weight: int = 1

    def run(self) -> Outcome:
        lengths = (np.fromfile(chunk_files(stem)[2], np.int32) for stem in self.stems)
        found = borders(lengths, self.shard_tokens)
        if len(found) < 2:
            texts = sum(facts["texts"] for facts in self.chunks)
            msg = f"corpus {self.name}: its tokenizer makes no token of any of its {texts} texts"
            raise DataError(msg)
        with disk_errors(self.target):
            prepare_folder(self.target)
        return Outcome({"borders": found})


def borders(chunks: Iterable[NDArray[np.int32]], shard_tokens: int) -> list[tuple[int, int, int]]:
    """Where shards begin, and the end: (chunk, sequence in it, token in it).

    Depends on the lengths alone, not on how they are grouped into chunks.
    """
    found = [(0, 0, 0)]
    room = shard_tokens
    number, count, total = -1, 0, 0
    for number, lengths in enumerate(chunks):
        ends = np.cumsum(lengths, dtype=np.int64)
        count, total = len(lengths), int(ends[-1]) if len(ends) else 0
        done = 0
        while (last := int(np.searchsorted(ends, done + room))) < count:
            done, room = int(ends[last]), shard_tokens
            found.append((number, last + 1, done))
        room -= total - done
    if room < shard_tokens:
        found.append((number, count, total))
    return found


def pieces(
    stems: Sequence[Path],
    begin: tuple[int, int, int],
    end: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> Iterator[Piece]:
    """What lies between two borders: tokens, lengths and annotations, chunk by chunk."""
    for chunk in range(begin[0], end[0] + 1):
        sequence, token = begin[1:] if chunk == begin[0] else (0, 0)
        to_sequence, to_token = end[1:] if chunk == end[0] else (None, None)
        tokens, annotations, lengths = chunk_files(stems[chunk])
        if not tokens.stat().st_size:
            continue
        ids = np.memmap(tokens, dtype, "r")[token:to_token]
        bits = np.memmap(annotations, np.uint8, "r")[token:to_token]
        sizes = np.fromfile(lengths, np.int32)[sequence:to_sequence]
        if len(sizes):
            yield ids, sizes, bits
