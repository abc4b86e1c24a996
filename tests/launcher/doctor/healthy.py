"""Two hosts that nothing is wrong with, as their probes would tell; tests break one thing each."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.doctor.scene import Scene
from launcher.hosts import Host

GIB = 1 << 30
SIZE = 64 << 20


def facts(name: str, number: int) -> dict[str, Any]:
    """All sections that a host with two GPUs answers."""
    address = f"10.0.0.{number}"
    other = f"node-{3 - number} 10.0.0.{3 - number} 41000"
    return {
        "clock": {"offset": 0.01, "error": 0.002},
        "machine": {
            "host_name": name,
            "identity": [name, "m", "b"],
            "cores": 8,
            "infiniband": False,
            "memory": {
                "total": 64 * GIB,
                "available": 60 * GIB,
                "swap_total": 8 * GIB,
                "swap_free": 8 * GIB,
            },
            "memory_limit": None,
            "shared_memory": {"total": 32 * GIB, "free": 32 * GIB},
            "open_files": [1024, 4096],
            "locked_memory": [None, None],
        },
        "devices": {"gpus": 2, "trouble": "", "driver": "550.54"},
        "software": {
            "python": "3.11.7",
            "executable": "/env/bin/python",
            "code": "/code",
            "digest": "d1",
            "versions": dict.fromkeys(
                ("torch", "deepspeed", "transformers", "numpy", "tokenizers"), "1.0"
            ),
            "programs": ["ssh", "pdsh", "mpirun", "orted", "g++"],
            "operator": {"folder": "/ext", "is_built": True, "compiler": True, "locks": []},
            "leftovers": {"paths": [], "bytes": 0},
        },
        "network": {
            "interfaces": {
                "lo": {"addresses": ["127.0.0.1"], "is_up": True},
                "docker0": {"addresses": ["172.17.0.1"], "is_up": True},
                "eth0": {"addresses": [address], "is_up": True},
            },
            "own_name": {"name": name, "addresses": [address], "trouble": ""},
            "address": address,
            "interface": "eth0",
            "trouble": "",
            "master": address if number == 1 else "",
            "listens": [{"address": address, "port": 41000, "word": "w"}],
            "port_trouble": "",
        },
        "calls": {other: ""},
        "storage": {
            "is_there": True,
            "kind": "nfs4",
            "free": 900 * GIB,
            "total": 1000 * GIB,
            "free_files": 10**6,
        },
        "written": {"trouble": ""},
        "read": {"node-1": "", "node-2": ""},
        "lock": {"answer": "taken" if number == 1 else "busy"},
        "speed": {"trouble": "", "written": SIZE, "seconds": 0.3, "is_full": False},
    }


def scene(changes: Mapping[str, Any] | None = None, **fields: Any) -> Scene:
    """Two hosts; ``changes``: ``node-2/machine/cores`` -> value."""
    told = {name: facts(name, number) for number, name in enumerate(("node-1", "node-2"), 1)}
    for path, value in copy.deepcopy(dict(changes or {})).items():
        place: Any = told
        *above, last = path.split("/")
        for key in above:
            place = place[key]
        place[last] = value
    given: dict[str, Any] = {
        "hosts": (Host("node-1", 2), Host("node-2", 2)),
        "facts": told,
        "programs": frozenset({"ssh", "pdsh", "mpirun", "srun"}),
        "folder": Path("/runs/a"),
        "is_folder_given": True,
        "python": "/env/bin/python",
    }
    return Scene(**given | fields)
