"""Counts what makes a host wait for its device: reads of single values, and sizes of results."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATORS = frozenset(
    {
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "equal",
        "bincount",
        "_unique2",
    }
)
"""A value is read, or the size of a result depends on values."""
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
"""Likewise where a mask is the index."""
_METHODS = frozenset({"tolist", "numpy", "cpu", "__array__"})
"""On a CPU these read memory past the operators."""

_HERE = Path(__file__).resolve()
_ROOT = _HERE.parents[1]


class Syncs:
    """A context manager that counts the waits that a device would have asked for.

    It sees what the calling thread does: on the CPU the backward pass, too.

    Attributes:
        places: how many there were, by the function of this project that asked; those of the bare
            loop and of DeepSpeed in it by the function that called the engine.
    """

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._watch = watch(self._note)

    def __enter__(self) -> "Syncs":
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(None, None, None)

    def _note(self, name: str) -> None:
        del name
        frame = sys._getframe(1)
        while frame.f_back and not _is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        file = Path(frame.f_code.co_filename)
        self.places[f"{file.parent.name}/{file.stem}:{frame.f_code.co_name}"] += 1


def _is_ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(_ROOT) and "site-packages" not in path.parts and path != _HERE


@contextmanager
def watch(note: Callable[[str], None]) -> Iterator[None]:
    """Call ``note`` with the name of each operator or method that would wait for a device."""
    with _Operators(note), _Methods(note):
        yield


class _Operators(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in _INDEXING and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if masks or name in _OPERATORS:
            self._note(name)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS:
            self._note(name)
        return func(*args, **(kwargs or {}))
