"""What a host has, and the environment its workers get: cores, GPUs, cache folders."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RecipeError
from configs.places import cache_folder
from launcher import spared

PROJECT = Path(__file__).resolve().parent.parent
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUESTION = "import torch; torch.cuda.init(); print(torch.cuda.device_count())"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """GPUs that torch can use."""
    return ask_torch().gpus


@dataclass(frozen=True, slots=True)
class Answer:
    """How many GPUs torch can use, and why not those that the host shows."""

    gpus: int
    trouble: str = ""


@functools.cache
def ask_torch() -> Answer:
    """Asks in another process, and only if the host shows any GPU."""
    if not has_gpus():
        return Answer(0)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _QUESTION],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return Answer(int(done.stdout))
    return Answer(0, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])


def unusable_gpus(environment: Mapping[str, str]) -> str | None:
    """Why the host's GPUs are left alone though the user has not hidden them; None if they are not.

    Shown as a warning: training on the CPU of a GPU host is seldom meant.
    """
    hidden = environment.get(_VISIBLE, "all").strip() in {"", "-1"}
    return None if hidden or gpus() else ask_torch().trouble or None


def device_name(environment: Mapping[str, str], processes: int) -> str:
    """Where this host's workers with this environment compute: ``the CPU``, ``2 GPUs``."""
    accelerator = environment.get("DS_ACCELERATOR", "cuda")
    if accelerator == "cpu":
        return "the CPU"
    if accelerator != "cuda":
        return accelerator
    return f"{processes} GPU{'s' if processes > 1 else ''}"


def has_gpus() -> bool:
    """Whether the host shows any GPU and DS_ACCELERATOR does not say cpu; asks no library."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return False
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists()


def visible_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """The GPU numbers that CUDA_VISIBLE_DEVICES names; None if it is not set."""
    given = environment.get(_VISIBLE)
    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not all(name.isdecimal() for name in names):
        msg = f"{_VISIBLE}={given}: expected numbers; the deepspeed launcher takes nothing else"
        raise RecipeError(msg)
    return [int(name) for name in names]


def default_processes() -> int:
    """One a GPU; without GPUs two, or one on a single core."""
    return gpus() or min(2, cores())


def extensions_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where DeepSpeed's operators are built: TORCH_EXTENSIONS_DIR, or a folder of our own.

    Ours is kept apart by torch, Python and processor: the compiler is told ``-march=native``.
    """
    given = environment.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"torch-{importlib.metadata.version('torch')}-{python}-{_processor()}"
    return cache_folder(environment) / "extensions" / name


def _processor() -> str:
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    facts = sorted({line for line in text.splitlines() if line.startswith(wanted)})
    return hashlib.sha256("\n".join([platform.machine(), *facts]).encode()).hexdigest()[:8]


def settle_accelerator() -> None:
    """Tell deepspeed, which peft and accelerate import, what it would else guess aloud."""
    if not has_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def shared_cores(processes: int, core_count: int) -> int:
    """The threads of each process, if nobody set OMP_NUM_THREADS."""
    return max(1, core_count // max(1, processes))


def threads(environment: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS says of the outermost level; None if it is not set, or no number."""
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else None


def worker_environment(
    environment: Mapping[str, str], processes: int, gpus_here: int, core_count: int
) -> dict[str, str]:
    """The environment for ``processes`` workers on one host; what is set already stays."""
    made = {name: value for name, value in environment.items() if name not in spared.names}
    if not gpus_here:
        made.setdefault("DS_ACCELERATOR", "cpu")
    made.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder(environment)))
    made.setdefault("OMP_NUM_THREADS", str(shared_cores(processes, core_count)))
    made.setdefault("TOKENIZERS_PARALLELISM", "false")
    # ssh comes without it. Another ninja than this environment's would build all operators anew.
    programs = [str(Path(sys.executable).parent), made.get("PATH", os.defpath)]
    made["PATH"] = os.pathsep.join(dict.fromkeys(os.pathsep.join(programs).split(os.pathsep)))
    paths = [str(PROJECT), *filter(None, made.get("PYTHONPATH", "").split(os.pathsep))]
    made["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # `python -m` puts the current folder first, where a `configs` or `engine` may lie.
    made["PYTHONSAFEPATH"] = "1"
    return made
