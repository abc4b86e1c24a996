"""What a logged step tells of the machine and the optimizer: memory, waits, rates, norms."""

from math import isfinite
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
        most, norm = self._most(backend), getattr(backend, "update_norm", lambda: None)()
        return {
            "rates": {name: lr * factor for name, factor in getattr(backend, "rates", {}).items()},
            "update_norm": norm if norm is not None and isfinite(norm) else None,
            "loss_scale": backend.extra_state().get("loss_scale", {}).get("cur_scale"),
            "data_wait": most[0],
            "memory": dict(zip(_MEMORY, most[1:], strict=True)),
        }

    def _most(self, backend: Backend) -> list[float | None]:
        """Seconds a step waiting for data, and memory in GiB: of the rank with most."""
        import torch

        mine = [self._waited / self._steps if self._steps else None, *_memory(backend.device)]
        self._waited, self._steps = 0.0, 0
        told = torch.zeros(backend.world, len(mine), dtype=torch.float64)
        told[backend.rank] = torch.tensor([-1.0 if each is None else each for each in mine])
        of_all = backend.sum_over_ranks(told).amax(0).tolist()
        return [each if each >= 0 else None for each in of_all]


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
