"""Accelerators by name: their memory as torch finds it, and their speeds as data sheets tell."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from configs.errors import RecipeError
from configs.yaml_source import nearest

GIB = 1 << 30
TERA, GIGA = 10**12, 10**9
_CARDS = 8
"""The most network cards of a host."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What the maker's data sheet says, and for networks what such hosts usually have.

    Attributes:
        low: FLOP/s of dense matrix products in bf16 and fp16, summed in fp32, without sparsity.
        full: FLOP/s in fp32 proper, which torch uses unless TF32 is asked for.
        memory: bytes/s of its own memory.
        within: bytes/s in one direction to another device of its host (NVLink, or PCIe).
        between: bytes/s in one direction to other hosts: of the device's own network card, or of
            the one card that a host's devices share. Data sheet of the card; that it is there is
            assumed.
        has_own_card: whether each device has one, up to eight a host.
    """

    low: float
    full: float
    memory: float
    within: float
    between: float
    has_own_card: bool = False

    def of_host(self, devices: int) -> float:
        """Bytes/s from a whole host with so many devices to the others."""
        return self.between * (min(devices, _CARDS) if self.has_own_card else 1)


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank computes on.

    Attributes:
        name: as on the command line.
        title: for people.
        memory: bytes, as ``torch.cuda.get_device_properties`` tells; of a CPU: one rank's share.
        is_cpu: its memory is the host's.
        host: bytes of the host's memory that one rank may use; None: not known.
        speeds: None: not known, as of a CPU, and of whatever a run finds itself on.
    """

    name: str
    title: str
    memory: int
    is_cpu: bool = False
    host: int | None = None
    speeds: Speeds | None = None


def _gpu(name: str, title: str, gib: float, speeds: Speeds) -> Device:
    return Device(name, title, int(gib * GIB), speeds=speeds)


_HOPPER: Mapping[str, Any] = {
    "low": 989.4 * TERA,
    "full": 66.9 * TERA,
    "within": 450 * GIGA,
    "between": 50 * GIGA,
    "has_own_card": True,
}
_AMPERE: Mapping[str, Any] = {
    "low": 312 * TERA,
    "full": 19.5 * TERA,
    "within": 300 * GIGA,
    "between": 25 * GIGA,
    "has_own_card": True,
}
GPUS: Mapping[str, Device] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("h100", "H100 80GB", 79.1, Speeds(memory=3350 * GIGA, **_HOPPER)),
            _gpu("h200", "H200 141GB", 139.8, Speeds(memory=4800 * GIGA, **_HOPPER)),
            _gpu("a100-40", "A100 40GB", 39.4, Speeds(memory=1555 * GIGA, **_AMPERE)),
            _gpu("a100-80", "A100 80GB", 79.1, Speeds(memory=2039 * GIGA, **_AMPERE)),
            _gpu(
                "l40s",
                "L40S 48GB",
                44.4,
                Speeds(362.1 * TERA, 91.6 * TERA, 864 * GIGA, 32 * GIGA, 25 * GIGA),
            ),
            _gpu(
                "rtx4090",
                "RTX 4090 24GB",
                23.6,
                Speeds(165.2 * TERA, 82.6 * TERA, 1008 * GIGA, 32 * GIGA, 3.1 * GIGA),
            ),
        )
    }
)
"""H100, H200 and A100 are the SXM ones, with one network card of 400 (A100: 200) Gbit/s each; an
L40S's host is taken to have 200 Gbit/s, an RTX 4090's 25."""
CPU_WITHIN, CPU_BETWEEN = 2 * GIGA, 1.25 * GIGA
"""Bytes/s between processes on one host, and between hosts (10 Gbit/s); assumed."""

_REACHED = ((2048, 0.50), (1024, 0.42), (0, 0.36))


def share_reached(hidden: int) -> float:
    """Share of the data sheet's FLOP/s that training reaches, assumed from a model's width.

    The project's goals on an H200: 36% for BERT-base, 42% for BERT-large, 50% from GPT 1.3B on.
    """
    return next(share for width, share in _REACHED if hidden >= width)


def find_device(name: str, ranks_on_host: int = 1, host_gib: float | None = None) -> Device:
    """A GPU of the table, or ``cpu``: this machine's memory, shared by so many ranks.

    Args:
        name: as on the command line.
        ranks_on_host: they share its memory.
        host_gib: GiB of a host's memory; None: not known.

    Raises:
        RecipeError: no such name; a host's memory beside a CPU, whose own it is.
    """
    if name == "cpu":
        if host_gib is not None:
            msg = "--host-memory goes with GPUs; with --device cpu it is this machine's"
            raise RecipeError(msg)
        return Device("cpu", "CPU", host_memory() // ranks_on_host, is_cpu=True)
    if name not in GPUS:
        known = [*GPUS, "cpu"]
        msg = f"--device {name}: {nearest(name, known)}"
        raise RecipeError(msg)
    host = None if host_gib is None else int(host_gib * GIB) // ranks_on_host
    return replace(GPUS[name], host=host)


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
