"""G: tokens a second of real models on one GPU, memory against the planner, and what must hold."""

import importlib.util
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.models import MODELS, SMALL_CLM, SMALL_MLM
from configs.errors import OnwardError, RecipeError, ResourceError
from configs.yaml_source import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from configs.devices import Device, Speeds

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "deepspeed", "numpy", "pydantic",
           "yaml", "xxhash", "filelock", "fsspec")  # fmt: skip


_SHEETS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
"""Of the devices' table, by what their driver calls them."""


def names() -> list[str]:
    """All rows: models, then checks, each on an encoder and on a decoder."""
    from benchmarks.gpu.checks import CHECKS

    return [*(model.name for model in MODELS), *CHECKS]


def measure() -> dict[str, Any]:
    """All rows on this machine's GPU; without one the row says so.

    The value is the least of the models' tokens a second over its goal on one H200. The target is
    reached if no row has failed besides. The first line tells what it ran on.
    """
    try:
        rows = measure_rows()
    except ResourceError as error:
        return _answer(None, [{"not measured": str(error)}])
    shares = [row["tokens_per_s"] / row["goal"] for row in rows if "tokens_per_s" in row]
    whole = len(shares) == len(MODELS)
    where = {"name": "machine", **facts("cuda")}
    return _answer(round(min(shares), 3) if whole else None, [where, *rows])


def _answer(value: float | None, details: list[dict[str, Any]]) -> dict[str, Any]:
    has_failed = any(row.get("passed") is False for row in details)
    reached = value is not None and value >= 1.0 and not has_failed
    return {"id": "G", "value": value, "target": 1.0, "reached": reached, "details": details}


def measure_rows(
    only: Sequence[str] = (), device: str = "cuda", *, tiny: bool = False
) -> list[dict[str, Any]]:
    """The rows of the table; one that fails says why, and the others go on.

    Args:
        only: names of rows; empty: all.
        device: ``cuda`` or ``cpu``.
        tiny: models in a size for a test.

    Raises:
        RecipeError: no row of such a name.
        ResourceError: no such device, or packages are missing.
    """
    for name in only:
        if name not in names():
            msg = f"--only {name}: {nearest(name, names())}"
            raise RecipeError(msg)
    wanted = list(only) or names()
    _require_packages()
    _require_device(device)
    with tempfile.TemporaryDirectory() as place, _settled(device, Path(place)):
        from engine import distributed

        with distributed.joined():
            here = _device(device)
            return [
                row for name in wanted for row in _rows(name, Path(place) / name, here, tiny=tiny)
            ]


def _rows(name: str, folder: Path, device: "Device", *, tiny: bool) -> "Iterator[dict[str, Any]]":
    from benchmarks.gpu.checks import check
    from benchmarks.gpu.speed import measure_speed

    for model in MODELS:
        if model.name == name:
            sized = model.tiny() if tiny else model
            yield _guarded(name, lambda sized=sized: measure_speed(sized, folder, device))
            return
    for model in (SMALL_MLM, SMALL_CLM):
        sized = model.tiny() if tiny else model
        where = folder / model.name
        row = _guarded(f"{name} {model.objective}", lambda s=sized, w=where: check(name, s, w))
        yield row


def _guarded(name: str, action: Any) -> dict[str, Any]:
    """Its answer, or what went wrong; either with its seconds."""
    began = perf_counter()
    try:
        found = {"name": name, **action()}
    except OnwardError as error:
        found = {"name": name, "passed": False, "error": str(error)}
    except Exception as error:  # the other rows shall be measured all the same
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        found = {"name": name, "passed": False, "error": told}
    return found | {"seconds": round(perf_counter() - began, 1)}


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        msg = (
            f"benchmark G: no {', '.join(missing)} here; install them, or put a folder that holds "
            "them on PYTHONPATH (DeepSpeed's source distribution makes a wheel of Python alone)"
        )
        raise ResourceError(msg)


def _require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch finds none" if built else f"torch {torch.__version__} is built without CUDA"
        msg = (
            f"benchmark G: it needs a CUDA GPU with its driver, and a torch built for CUDA; {why}. "
            "--device cpu --tiny runs the same code on tiny models"
        )
        raise ResourceError(msg)


@contextmanager
def _settled(device: str, place: Path) -> "Iterator[None]":
    """The environment that a launcher would make, for this one process; and as it was."""
    before = dict(os.environ)
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        from launcher.environment import extensions_folder

        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder(os.environ)))
        from launcher.jit import build_operators

        build_operators()
    # Torch would name the one of all processes, where interrupted ones leave half a library.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place / "compiled"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _device(kind: str) -> "Device":
    """What is there: its own memory, and the data sheet's speeds where the table has it."""
    from configs.devices import Device, find_device, host_memory

    if kind == "cpu":
        return find_device("cpu")
    import torch

    found = torch.cuda.get_device_properties(0)
    own = Device("cuda", found.name, found.total_memory, host=host_memory())
    return replace(own, speeds=_sheet(found.name))


def _sheet(name: str) -> "Speeds | None":
    """The data sheet of exactly this model, as torch names it: an H100 PCIe is no H100 SXM."""
    from configs.devices import GPUS

    return GPUS[_SHEETS[name]].speeds if name in _SHEETS else None


def facts(device: str) -> dict[str, Any]:
    """What it runs on: versions, the GPU and its driver."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version()}
    for name in ("torch", "transformers", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed, but on the path"
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or "CPU"
    driver = {"driver": _driver()} if device == "cuda" else {}
    return found | {"device": name, "cuda": torch.version.cuda} | driver


def _driver() -> str:
    """Version of NVIDIA's kernel driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"not told: {type(error).__name__}"
    return done.stdout.split()[0] if done.stdout.strip() else "not told"
