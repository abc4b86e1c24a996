"""What a logged step tells of the machine and the optimizer: memory, waits, rates, norms."""

from math import isfinite, sqrt
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.protocols import Backend

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")
_GIB = 2**30
_MEMORY = ("host", "host_peak", "device", "device_peak")


class Vitals:
    """Numbers of the steps since the last line, read when a line is due; an observer besides.

    What differs from rank to rank is told of the rank that has most of it.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._waited = 0.0
        self._steps = 0

    def enter(self, phase: str) -> None:
        """The main thread begins a phase: it waits for data, or has waited."""
        if phase == "data":
            self._began = perf_counter()
            self._steps += 1
        elif phase == "reduce":
            self._waited += perf_counter() - self._began

    def take(self, backend: Backend, lr: float) -> dict[str, Any]:
        """All of it; every rank must call it."""
        change = backend.update_norm()
        update = None if change is None else float(change)
        *most, weights = self._of_all(backend, 0.0 if update is None else _squares(backend))
        ratio = update / sqrt(weights) if update is not None and weights else None
        return {
            "rates": {name: lr * factor for name, factor in backend.rates.items()},
            "update_norm": update if update is not None and isfinite(update) else None,
            "update_ratio": ratio if ratio is not None and isfinite(ratio) else None,
            "loss_scale": backend.extra_state().get("loss_scale", {}).get("cur_scale"),
            "data_wait": most[0],
            "memory": dict(zip(_MEMORY, most[1:], strict=True)),
        }

    def _of_all(self, backend: Backend, squares: float) -> list[float | None]:
        """Seconds a step waiting for data, and memory in GiB: of the rank with most.

        Last of all the sum of the ranks' ``squares``.
        """
        import torch

        waited = self._waited / self._steps if self._steps else None
        self._waited, self._steps = 0.0, 0
        mine = [waited, *_memory(backend.device)]
        told = torch.zeros(backend.world, len(mine) + 1, dtype=torch.float64)
        told[backend.rank] = torch.tensor([*(-1.0 if e is None else e for e in mine), squares])
        told = backend.sum_over_ranks(told)
        most = told[:, :-1].amax(0).tolist()
        return [*(each if each >= 0 else None for each in most), float(told[:, -1].sum())]


def _squares(backend: Backend) -> float:
    """The sum of the squares of the weights that this rank holds of those that train."""
    import torch

    weights = [piece.tensor for piece in backend.fragments() if piece.key == "fp32"]
    if not weights:
        return 0.0
    norms = torch.stack([torch.linalg.vector_norm(w, dtype=torch.float32) for w in weights])
    return float(norms.double().square().sum())


def _memory(device: "torch.device") -> list[float | None]:
    """GiB that this process has of the host's memory and of the device's, now and at most."""
    import torch

    on_device: list[float | None] = [None, None]
    if device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        on_device = [now / _GIB, peak / _GIB]
    return [*host_memory(), *on_device]


def host_memory(status: Path = _STATUS) -> list[float | None]:
    """GiB of memory this process holds, now and at most; None where the system does not tell."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return [None, None]
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    # In units of 1024 bytes, "kB" behind them.
    sizes = [told.get(name, "").split() for name in ("VmRSS", "VmHWM")]
    return [int(size[0]) * 1024 / _GIB if size else None for size in sizes]
