"""Accelerators by name, and the memory that torch finds on each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from configs.errors import RecipeError
from configs.yaml_source import nearest

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank computes on.

    Attributes:
        name: as on the command line.
        title: for people.
        memory: bytes, as ``torch.cuda.get_device_properties`` tells; of a CPU: one rank's share.
        is_cpu: its memory is the host's.
        host: bytes of the host's memory that one rank may use; None: not known.
    """

    name: str
    title: str
    memory: int
    is_cpu: bool = False
    host: int | None = None


def _gpu(name: str, title: str, gib: float) -> Device:
    return Device(name, title, int(gib * GIB))


GPUS: Mapping[str, Device] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("h100", "H100 80GB", 79.1),
            _gpu("h200", "H200 141GB", 139.8),
            _gpu("a100-40", "A100 40GB", 39.4),
            _gpu("a100-80", "A100 80GB", 79.1),
            _gpu("l40s", "L40S 48GB", 44.4),
            _gpu("rtx4090", "RTX 4090 24GB", 23.6),
        )
    }
)


def find_device(name: str, ranks_on_host: int = 1) -> Device:
    """A GPU of the table, or ``cpu``: this machine's memory, shared by so many ranks.

    Raises:
        RecipeError: no such name.
    """
    if name == "cpu":
        return Device("cpu", "CPU", host_memory() // ranks_on_host, is_cpu=True)
    if name not in GPUS:
        known = [*GPUS, "cpu"]
        msg = f"--device {name}: {nearest(name, known)}"
        raise RecipeError(msg)
    return GPUS[name]


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
