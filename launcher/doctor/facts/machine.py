"""A host's hardware and the limits that are set for processes there."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.environment import cores, has_gpus

_COUNT = "import torch; torch.cuda.init(); print(torch.cuda.device_count())"
_COUNT_SECONDS = 60


def facts() -> dict[str, Any]:
    """Bytes, counts, and what tells this machine from others."""
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "host_name": socket.gethostname(),
        "identity": [socket.gethostname(), _read("/etc/machine-id"), _boot()],
        "cores": cores(),
        "infiniband": any(Path("/sys/class/infiniband").glob("*")),
        "memory": _memory(),
        "memory_limit": min(_cgroup_limits(), default=None),
        "shared_memory": {"total": shared.total, "free": shared.free} if shared else None,
        "open_files": _limit(resource.RLIMIT_NOFILE),
        "locked_memory": _limit(resource.RLIMIT_MEMLOCK),
    }


def devices() -> dict[str, Any]:
    """GPUs that torch can use; asked in another process, and only if the host shows any."""
    if not has_gpus():
        return {"gpus": 0, "trouble": "", "driver": None}
    driver = _read("/sys/module/nvidia/version") or None
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _COUNT],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COUNT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        trouble = f"torch did not count them within {_COUNT_SECONDS} s"
        return {"gpus": 0, "trouble": trouble, "driver": driver}
    if done.returncode == 0:
        return {"gpus": int(done.stdout), "trouble": "", "driver": driver}
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"gpus": 0, "trouble": said, "driver": driver}


def _memory() -> dict[str, int]:
    """Bytes, from ``/proc/meminfo``."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    values = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (x.partition(":") for x in lines)
    }
    return {
        "total": values["MemTotal"],
        "available": values["MemAvailable"],
        "swap_total": values.get("SwapTotal", 0),
        "swap_free": values.get("SwapFree", 0),
    }


def _cgroup_limits() -> Iterator[int]:
    """Every limit on memory that holds for this process, of both versions of control groups."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in {"", "memory"}:
            continue
        root = Path("/sys/fs/cgroup") / kinds
        file = "memory.limit_in_bytes" if kinds else "memory.max"
        own = root / name.lstrip("/")
        for folder in (own, *own.parents):
            value = _read(folder / file)
            if value.isdecimal() and int(value) < 1 << 60:
                yield int(value)
            if folder == root:
                break


def _limit(kind: int) -> list[int | None]:
    """Soft and hard; None: no limit."""
    return [
        None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(kind)
    ]


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
