"""Weights and optimizer state as safetensors fragments: any world size reads what any other wrote.

Each rank writes the pieces it owns into one file; the index says which range of which flattened
parameter lies where. A reader asks for a range and never learns who wrote it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine import faults
from engine.checkpoint.commit import FileRecord, write_file
from engine.checkpoint.disk import disk_errors, require_space
from engine.protocols import Fragment

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "index.json"
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Stored:
    """How values of a torch dtype lie in a file: safetensors' name for it, and bytes a value."""

    name: str
    width: int


DTYPES = {"float32": Stored("F32", 4), "bfloat16": Stored("BF16", 2), "float16": Stored("F16", 2)}


@dataclass(frozen=True, slots=True)
class Piece:
    """Where ``length`` values of a parameter's state lie: from ``start`` of the flat parameter."""

    name: str
    key: str
    shape: tuple[int, ...]
    start: int
    length: int
    stored: Stored
    file: str

    @property
    def entry(self) -> str:
        """The tensor's name in its file."""
        return entry_name(self.name, self.key, self.start)


@dataclass(frozen=True, slots=True)
class RankFile:
    """What one rank wrote."""

    record: FileRecord
    pieces: tuple[Piece, ...]


def entry_name(name: str, key: str, start: int) -> str:
    """A piece's name in its safetensors file."""
    return f"{name}|{key}|{start}"


def write_fragments(path: Path, fragments: Iterable[Fragment], step: int) -> RankFile:
    """Write a rank's fragments as one safetensors file, each in its own dtype.

    Tensors are brought to the CPU one after another, so a save needs no second copy of the state.

    Raises:
        DiskError: they do not fit, or the disk failed.
        CheckpointError: a fragment is not flat, or of a dtype that is not in ``DTYPES``.
    """
    held = [fragment for fragment in fragments if fragment.tensor.numel()]
    pieces = tuple(_piece(fragment, path.name) for fragment in held)
    header = _header(pieces)
    values = sum(piece.stored.width * piece.length for piece in pieces)
    size = len(header) + values

    def content() -> Iterator[bytes | memoryview]:
        faults.reached("checkpoint.shard", step=step)
        yield header
        written = 0
        for block in _blocks(held):
            if written < values / 2 <= written + len(block):
                faults.reached("checkpoint.half", step=step)
            yield block
            written += len(block)

    with disk_errors(path, size):
        require_space(path.parent, size)
        return RankFile(write_file(path, content), pieces)


def bytes_of(fragments: Iterable[Fragment]) -> int:
    """How many bytes the values of these fragments take in a file."""
    return sum(fragment.tensor.numel() * _stored(fragment).width for fragment in fragments)


def _piece(fragment: Fragment, file: str) -> Piece:
    tensor = fragment.tensor
    stored = _stored(fragment)
    shape = tuple(fragment.shape)
    return Piece(fragment.name, fragment.key, shape, fragment.start, tensor.numel(), stored, file)


def _stored(fragment: Fragment) -> Stored:
    tensor = fragment.tensor
    stored = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if stored is None or tensor.ndim != 1:
        msg = (
            f"{fragment.name}: '{fragment.key}' is {tensor.dtype} of {tensor.ndim} dimensions, "
            f"expected one dimension of {', '.join(DTYPES)}"
        )
        raise CheckpointError(msg)
    return stored


def _header(pieces: Sequence[Piece]) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON."""
    entries: dict[str, Any] = {}
    offset = 0
    for piece in pieces:
        if piece.entry in entries:
            msg = f"{piece.name}: rank file {piece.file} would hold '{piece.key}' twice"
            raise CheckpointError(msg)
        end = offset + piece.stored.width * piece.length
        entries[piece.entry] = {
            "dtype": piece.stored.name,
            "shape": [piece.length],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(fragments: Iterable[Fragment]) -> Iterator[memoryview]:
    """The values' bytes in pieces that stay in the processor's cache from digest to write."""
    for fragment in fragments:
        values = _host_bytes(fragment.tensor)
        for at in range(0, len(values), _BLOCK):
            yield values[at : at + _BLOCK]


def _host_bytes(tensor: "Tensor") -> memoryview:
    flat = tensor.detach().cpu().contiguous()
    if str(flat.dtype) == "torch.bfloat16":
        import torch

        flat = flat.view(torch.int16)  # numpy has no bfloat16
    return flat.numpy().data.cast("B")


def make_index(pieces: Iterable[Piece]) -> dict[str, Any]:
    """The index of all ranks' pieces; CheckpointError if they leave a gap or overlap."""
    states: dict[tuple[str, str], list[Piece]] = {}
    for piece in pieces:
        states.setdefault((piece.name, piece.key), []).append(piece)
    parameters: dict[str, Any] = {}
    for (name, key), owned in states.items():
        owned.sort(key=lambda piece: piece.start)
        _check_cover(owned)
        entry = parameters.setdefault(name, {"shape": list(owned[0].shape), "states": {}})
        entry["states"][key] = {
            "dtype": owned[0].stored.name,
            "pieces": [[piece.file, piece.start, piece.length] for piece in owned],
        }
    return {"parameters": parameters}


def _check_cover(owned: Sequence[Piece]) -> None:
    first = owned[0]
    end = 0
    for piece in owned:
        if piece.start != end or piece.shape != first.shape or piece.stored != first.stored:
            msg = (
                f"{piece.name}: the ranks' pieces of '{piece.key}' do not join: one ends at {end} "
                f"of {first.shape} {first.stored.name}, the next starts at {piece.start} of "
                f"{piece.shape} {piece.stored.name} ({piece.file})"
            )
            raise CheckpointError(msg)
        end += piece.length
    if end != prod(first.shape):
        msg = f"{first.name}: {end} values of '{first.key}' are held, its shape is {first.shape}"
        raise CheckpointError(msg)
