"""Environments for the loaders to compare with; ``python -m benchmarks peers`` makes them."""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs.

    Attributes:
        requirements: for pip.
        alone: installed without what they ask for.
        without: taken out again: no build of it works beside a CPU-only torch, and nothing that
            is measured uses it.
    """

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


ENVIRONMENTS = {
    "litdata": Environment((TORCH, "litdata==0.2.76"), without=("torchvision",)),
    "mosaic": Environment((TORCH, "mosaicml-streaming==0.13.0"), without=("torchvision",)),
    "megatron": Environment(
        (TORCH, "numpy", "packaging", "pybind11"), alone=("megatron-core==0.16.1",)
    ),
}


def folder() -> Path:
    """Where the environments lie: below ONWARD_CACHE."""
    return Path(os.environ.get("ONWARD_CACHE", ".cache")).absolute() / "peers"


def python_of(name: str) -> Path | None:
    """The Python of an environment; None where it has not been made."""
    if name not in ENVIRONMENTS:
        return Path(sys.executable)
    python = folder() / name / "bin" / "python"
    return python if (folder() / name / ".ready").exists() else None


def make() -> None:
    """Make those that are not there yet (3 GB, most of it a torch for each)."""
    for name, environment in ENVIRONMENTS.items():
        place = folder() / name
        if python_of(name) is not None:
            print(f"{name}: {place}")
            continue
        print(f"{name}: making {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *environment.requirements], check=True)
        if environment.alone:
            subprocess.run([*pip, "install", "--no-deps", *environment.alone], check=True)
        if environment.without:
            subprocess.run([*pip, "uninstall", "--yes", *environment.without], check=True)
        (place / ".ready").touch()
