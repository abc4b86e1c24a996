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

import numpy as np

from configs.errors import CheckpointError
from engine.checkpoint.commit import FileRecord, require_space, write_file
from engine.protocols import Fragment

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = "fp32"
INDEX = "index.json"
_BYTES = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Where ``length`` values of a parameter's state lie: from ``start`` of the flat parameter."""

    name: str
    key: str
    shape: tuple[int, ...]
    start: int
    length: int
    file: str

    @property
    def entry(self) -> str:
        """The tensor's name in its file."""
        return f"{self.name}|{self.key}|{self.start}"


@dataclass(frozen=True, slots=True)
class RankFile:
    """What one rank wrote."""

    record: FileRecord
    pieces: tuple[Piece, ...]


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> RankFile:
    """Write a rank's fragments as one safetensors file; ResourceError if they cannot fit.

    Tensors are brought to the CPU one after another, so a save needs no second copy of the state.
    """
    held = [fragment for fragment in fragments if fragment.tensor.numel()]
    pieces = tuple(
        Piece(f.name, f.key, tuple(f.shape), f.start, f.tensor.numel(), path.name) for f in held
    )
    header = _header(pieces)
    require_space(path.parent, len(header) + _BYTES * sum(piece.length for piece in pieces))
    return RankFile(write_file(path, _chunks(header, held)), pieces)


def _header(pieces: Sequence[Piece]) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON."""
    entries: dict[str, Any] = {}
    offset = 0
    for piece in pieces:
        if piece.entry in entries:
            msg = f"{piece.name}: rank file {piece.file} would hold '{piece.key}' twice"
            raise CheckpointError(msg)
        end = offset + _BYTES * piece.length
        entries[piece.entry] = {
            "dtype": "F32",
            "shape": [piece.length],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(header: bytes, fragments: Iterable[Fragment]) -> Iterator[bytes | memoryview]:
    yield header
    for fragment in fragments:
        values = fragment.tensor.detach().cpu().numpy()
        if values.dtype != np.float32 or values.ndim != 1:
            msg = (
                f"{fragment.name}: '{fragment.key}' is {values.dtype} {values.shape}, "
                "expected flat fp32"
            )
            raise CheckpointError(msg)
        yield np.ascontiguousarray(values).data.cast("B")


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
        entry["states"][key] = [[piece.file, piece.start, piece.length] for piece in owned]
    return {"parameters": parameters}


def _check_cover(owned: Sequence[Piece]) -> None:
    first = owned[0]
    end = 0
    for piece in owned:
        if piece.start != end or piece.shape != first.shape:
            msg = (
                f"{piece.name}: the ranks' pieces of '{piece.key}' do not join: one ends at {end} "
                f"of {first.shape}, the next starts at {piece.start} of {piece.shape} "
                f"({piece.file})"
            )
            raise CheckpointError(msg)
        end += piece.length
    if end != prod(first.shape):
        msg = f"{first.name}: {end} values of '{first.key}' are held, its shape is {first.shape}"
        raise CheckpointError(msg)


class FragmentStore:
    """Reads any range of any state from a checkpoint folder that has been verified."""

    def __init__(self, folder: Path) -> None:
        """Read the index; CheckpointError if there is none."""
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_bytes())
        except (OSError, ValueError) as error:
            msg = f"{folder / INDEX}: no index of a checkpoint: {error}"
            raise CheckpointError(msg) from error
        self._parameters: dict[str, Any] = index["parameters"]
        self._files: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Parameters that the checkpoint holds."""
        return list(self._parameters)

    @property
    def state_keys(self) -> list[str]:
        """Keys of the optimizer state, of any parameter: all but the weights' own."""
        keys = {key for entry in self._parameters.values() for key in entry["states"]}
        return sorted(keys - {WEIGHT})

    def has(self, name: str, key: str = WEIGHT) -> bool:
        """Whether the checkpoint holds that state of that parameter."""
        return key in self._parameters.get(name, {"states": {}})["states"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self._parameter(name)["shape"])

    def whole(self, name: str, key: str = WEIGHT) -> "Tensor":
        """A state in the shape of its parameter, fp32 on the CPU."""
        shape = self.shape(name)
        return self.read(name, key, 0, prod(shape)).reshape(shape)

    def read(self, name: str, key: str, start: int, length: int) -> "Tensor":
        """fp32 [length] on the CPU: that range of the flattened state.

        Raises:
            CheckpointError: the checkpoint has no such parameter, state or range.
        """
        import torch

        size = prod(self.shape(name))
        if start < 0 or length < 0 or start + length > size:
            msg = (
                f"{self.folder}: {name}: asked for values {start} to {start + length}, it has "
                f"{size}; the model is not the one that was saved"
            )
            raise CheckpointError(msg)
        out = torch.empty(length)
        for file, begins, held in self._pieces(name, key):
            low, high = max(start, begins), min(start + length, begins + held)
            if low < high:
                entry = self._open(file).get_slice(f"{name}|{key}|{begins}")
                out[low - start : high - start] = entry[low - begins : high - begins]
        return out

    def _parameter(self, name: str) -> dict[str, Any]:
        if name not in self._parameters:
            msg = f"{self.folder}: no parameter '{name}'; the model is not the one that was saved"
            raise CheckpointError(msg)
        return dict(self._parameters[name])

    def _pieces(self, name: str, key: str) -> list[tuple[str, int, int]]:
        states = self._parameter(name)["states"]
        if key not in states:
            msg = f"{self.folder}: {name} has no state '{key}', it has: {', '.join(sorted(states))}"
            raise CheckpointError(msg)
        return [(file, start, length) for file, start, length in states[key]]

    def _open(self, file: str) -> Any:
        if file not in self._files:
            from safetensors import safe_open

            self._files[file] = safe_open(self.folder / file, framework="pt")
        return self._files[file]
