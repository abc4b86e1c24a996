"""Any range of any state, read from the fragments of a checkpoint: only what is asked for."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.commit import is_plain
from engine.checkpoint.fragments import DTYPES, INDEX, entry_name

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = "fp32"


@dataclass(frozen=True, slots=True)
class _Held:
    """One piece of a state: ``length`` values from ``start`` of the flat parameter."""

    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _State:
    """One state of a parameter: safetensors' name of its dtype, its pieces in order."""

    dtype: str
    pieces: tuple[_Held, ...]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter's whole shape and its states by key."""

    shape: tuple[int, ...]
    states: dict[str, _State]


class FragmentStore:
    """Reads any range of any state from a checkpoint folder that has been verified.

    Files are mapped, not read: a range costs the reading of its own pages, once.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index; CheckpointError if there is none, or it leads out of the folder."""
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_bytes())
            self._parameters = {
                name: _parameter(entry) for name, entry in index["parameters"].items()
            }
            _require_held(folder, self._parameters)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{folder / INDEX}: not the index of a checkpoint: {error}"
            raise CheckpointError(msg) from error
        self._files: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Parameters that the checkpoint holds."""
        return list(self._parameters)

    @property
    def state_keys(self) -> list[str]:
        """Keys of the optimizer state, of any parameter: all but the weights' own."""
        keys = {key for entry in self._parameters.values() for key in entry.states}
        return sorted(keys - {WEIGHT})

    def has(self, name: str, key: str = WEIGHT) -> bool:
        """Whether the checkpoint holds that state of that parameter."""
        return name in self._parameters and key in self._parameters[name].states

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return self._parameter(name).shape

    def whole(self, name: str, key: str = WEIGHT) -> "Tensor":
        """A state in the shape of its parameter, fp32 on the CPU."""
        shape = self.shape(name)
        return self.read(name, key, 0, prod(shape)).reshape(shape)

    def read(self, name: str, key: str, start: int, length: int) -> "Tensor":
        """fp32 [length] on the CPU: that range of the flattened state, whatever dtype it has.

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
        state = self._state(name, key)
        found = 0
        for held in state.pieces:
            low, high = max(start, held.start), min(start + length, held.start + held.length)
            if low < high:
                entry = self._entry(entry_name(name, key, held.start), state.dtype, held)
                out[low - start : high - start] = entry[low - held.start : high - held.start]
                found += high - low
        if found != length:
            msg = f"{self.folder / INDEX}: {name}: the pieces of '{key}' leave a gap or overlap"
            raise CheckpointError(msg)
        return out

    def _parameter(self, name: str) -> _Parameter:
        if name not in self._parameters:
            msg = f"{self.folder}: no parameter '{name}'; the model is not the one that was saved"
            raise CheckpointError(msg)
        return self._parameters[name]

    def _state(self, name: str, key: str) -> _State:
        states = self._parameter(name).states
        if key not in states:
            msg = f"{self.folder}: {name} has no state '{key}', it has: {', '.join(sorted(states))}"
            raise CheckpointError(msg)
        return states[key]

    def _entry(self, name: str, dtype: str, held: _Held) -> Any:
        """The slice of a mapped file; CheckpointError if it is not what the index says."""
        from safetensors import SafetensorError

        try:
            entry = self._open(held.file).get_slice(name)
        except (SafetensorError, OSError) as error:
            msg = f"{self.folder / held.file}: {name}: cannot be read: {error}"
            raise CheckpointError(msg) from error
        if entry.get_shape() != [held.length] or entry.get_dtype() != dtype:
            msg = (
                f"{self.folder / held.file}: {name} is {entry.get_dtype()} {entry.get_shape()}, "
                f"the index says {dtype} [{held.length}]"
            )
            raise CheckpointError(msg)
        return entry

    def _open(self, file: str) -> Any:
        if file not in self._files:
            from safetensors import safe_open

            path = self.folder / file
            if path.is_symlink():
                msg = f"{path}: leads out of the checkpoint"
                raise CheckpointError(msg)
            self._files[file] = safe_open(path, framework="pt")
        return self._files[file]


def _parameter(entry: dict[str, Any]) -> _Parameter:
    """An index entry, typed; ValueError and the like if it is malformed."""
    states = {
        key: _State(_known(state["dtype"]), tuple(_held(*piece) for piece in state["pieces"]))
        for key, state in entry["states"].items()
    }
    return _Parameter(tuple(int(size) for size in entry["shape"]), states)


def _require_held(folder: Path, parameters: dict[str, _Parameter]) -> None:
    """ValueError for states larger than the files they are said to lie in.

    Memory is asked for by what the index says: it must not say more than is there.
    """
    widths = {stored.name: stored.width for stored in DTYPES.values()}
    said: dict[str, int] = {}
    for name, parameter in parameters.items():
        for key, state in parameter.states.items():
            total = 0
            for held in state.pieces:
                if held.start < 0 or held.length < 0:
                    msg = f"{name}: a piece of '{key}' from {held.start}, {held.length} long"
                    raise ValueError(msg)
                total += held.length
                said[held.file] = said.get(held.file, 0) + held.length * widths[state.dtype]
            if total != prod(parameter.shape) or min(parameter.shape, default=0) < 0:
                msg = f"{name}: {total} values of '{key}', its shape is {parameter.shape}"
                raise ValueError(msg)
    for file, size in said.items():
        path = folder / file
        if path.is_file() and size > path.stat().st_size:
            msg = f"{path} is smaller than the {size} bytes that it is said to hold"
            raise ValueError(msg)


def _held(file: str, start: int, length: int) -> _Held:
    if not is_plain(file):
        msg = f"{file!r} leads out of the checkpoint"
        raise ValueError(msg)
    return _Held(file, int(start), int(length))


def _known(dtype: str) -> str:
    if dtype not in {stored.name for stored in DTYPES.values()}:
        msg = f"dtype {dtype!r}"
        raise ValueError(msg)
    return dtype
