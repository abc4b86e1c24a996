"""Which programs and packages a host has, and what an ended build left there."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from launcher import jit
from launcher.agreement import code_digest
from launcher.environment import PROJECT, extensions_folder

PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "tokenizers", "datasets", "peft",
            "safetensors", "pydantic")  # fmt: skip
PROGRAMS = ("ssh", "pdsh", "mpirun", "orted", "srun", "g++")
_BUFFERS = "deepspeed_allreduce_buffer_*"


def facts() -> dict[str, Any]:
    """Versions, a digest of our own code, programs, and the operator's folder."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "code": str(PROJECT),
        "digest": code_digest(),
        "versions": {name: _version(name) for name in PACKAGES},
        "programs": [name for name in PROGRAMS if shutil.which(name)],
        "operator": _operator(),
        "leftovers": _leftovers(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _operator() -> dict[str, Any]:
    """DeepSpeed's operator for the CPU: built or not, and the locks in its folder."""
    if _version("deepspeed") is None or _version("torch") is None:
        return {"folder": None, "is_built": False, "locks": []}
    folder = extensions_folder()
    return {
        "folder": str(folder),
        "is_built": jit.is_built(folder),
        "compiler": shutil.which(os.environ.get("CXX", "g++")) is not None,
        "locks": [
            {"path": str(lock.path), "age": lock.age, "is_held": lock.is_held}
            for lock in jit.locks(folder)
        ],
    }


def _leftovers() -> dict[str, Any]:
    """Shared memory of killed launches: our user's, held by no process, over a minute old."""
    paths = []
    for path in Path("/dev/shm").glob(_BUFFERS):
        try:
            found = path.stat()
        except OSError:
            continue
        is_old = time.time() - found.st_mtime > 60
        if found.st_uid == os.getuid() and is_old and not jit.is_open(path):
            paths.append((str(path), found.st_blocks * 512))
    return {"paths": sorted(name for name, _ in paths), "bytes": sum(size for _, size in paths)}
