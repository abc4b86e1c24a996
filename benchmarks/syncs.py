"""Counts what makes a host wait for its device: reads of single values, and sizes of results."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATORS = frozenset(
    {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"}
)
_METHODS = frozenset({"tolist", "numpy", "cpu"})
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
        self._modes: tuple[Any, ...] = (_Operators(self), _Methods(self))

    def __enter__(self) -> "Syncs":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def note(self) -> None:
        """There is one."""
        frame = sys._getframe(1)
        while frame.f_back and not _is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        file = Path(frame.f_code.co_filename)
        self.places[f"{file.parent.name}/{file.stem}:{frame.f_code.co_name}"] += 1


def _is_ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(_ROOT) and "site-packages" not in path.parts and path != _HERE


class _Operators(TorchDispatchMode):
    def __init__(self, syncs: Syncs) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _OPERATORS:
            self._syncs.note()
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, syncs: Syncs) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _METHODS:
            self._syncs.note()
        return func(*args, **(kwargs or {}))
