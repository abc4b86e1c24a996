"""Which environment variables reach the other hosts, and how: an explicit list, nothing secret."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from configs.errors import RecipeError
from launcher import spelling
from launcher.secrecy import holds_secret, is_secret_name

PACKED = "ONWARD_PASSED"
"""Holds, spelled, those whose values are not plain; a worker unpacks it first of all."""
# Nothing secret: deepspeed puts these on a command line that every user of the hosts can read.
_FORWARDED = frozenset(
    {
        "ONWARD_CACHE",
        "ONWARD_JOIN_SECONDS",
        "ONWARD_LAUNCHER_SILENCE",
        "ONWARD_LISTEN",
        "ONWARD_REMOTE_DEADLINE",
        "ONWARD_REMOTE_TIMEOUT",
        "ONWARD_UMASK",
        "DS_ACCELERATOR",
        "OMP_NUM_THREADS",
        "TORCH_EXTENSIONS_DIR",
        "TOKENIZERS_PARALLELISM",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "HF_DATASETS_CACHE",
        "HF_DATASETS_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TORCH_DISTRIBUTED_DEBUG",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONFAULTHANDLER",
        "PYTHONHASHSEED",
        "PYTHONNOUSERSITE",
    }
)
_FAMILIES = re.compile(r"(?:NCCL|GLOO|FI|UCX)_[A-Z0-9_]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Read before a worker can unpack anything.
_AT_START = re.compile(r"PYTHON.*|LD_.*|PATH|HOME")
# What python, ssh, pdsh, mpirun and srun themselves live on, on the machine that starts the run.
_OWN = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "LANG", "LANGUAGE"),
        *("LD_LIBRARY_PATH", "SSH_AUTH_SOCK", "KRB5CCNAME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"),
        *("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE"),
    }
)
_OWN_FAMILIES = ("LC_", "SLURM_", "SRUN_", "SLURMD_", "PDSH_", "OMPI_", "PMIX_", "PRTE_", "OPAL_")


def exports(
    environment: Mapping[str, str], own_files: Sequence[Path], passed: Sequence[str] = ()
) -> dict[str, str]:
    """What is set here of the listed names and of ``passed``, then what the user's files say.

    Raises:
        RecipeError: a line that is not NAME=value; a name of ``passed`` that is not set; a name
            or a value that looks secret.
    """
    found = {name: value for name, value in environment.items() if _is_listed(name)}
    for name in passed:
        if name not in environment:
            msg = f"--env {name}: not set here; set it, or leave the option out"
            raise RecipeError(msg)
        found[name] = environment[name]
    for path in own_files:
        if path.is_file():
            found |= dict(_read(path))
    for name, value in found.items():
        _refuse_secret(name, value)
    return dict(sorted(found.items()))


def _is_listed(name: str) -> bool:
    return name in _FORWARDED or _FAMILIES.fullmatch(name) is not None


def _refuse_secret(name: str, value: str) -> None:
    why = "its name says that it is secret" if is_secret_name(name) else ""
    why = why or ("its value holds a password or token" if holds_secret(value) else "")
    if why:
        msg = (
            f"environment variable {name} is not handed to other hosts: {why}, and it would stand "
            "on a command line that others can read. Keep secrets in files that each host has "
            "(~/.netrc, ~/.aws/credentials, `hf auth login`), readable by you alone"
        )
        raise RecipeError(msg)


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the launcher's programs need of the user's environment, and nothing else of it."""
    return {
        name: value
        for name, value in environment.items()
        if name in _OWN or name.startswith(_OWN_FAMILIES)
    }


def own_files(environment: Mapping[str, str]) -> list[Path]:
    """Where deepspeed itself would look: the home folder and this one."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    return list(dict.fromkeys([Path.home() / name, Path.cwd() / name]))


def _read(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read ({error}); expected lines of NAME=value"
        raise RecipeError(msg) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            msg = f"{path}:{number}: expected NAME=value"
            raise RecipeError(msg)
        yield name.strip(), value.strip()


def format_exports(values: Mapping[str, str]) -> str:
    """Lines that deepspeed hands on literally, whichever launcher it uses.

    It puts values with special characters between double quotes and escapes nothing, and srun
    takes a comma for the end of a value: only plain ones go as they are.

    Raises:
        RecipeError: a value that is needed before a worker can unpack it, and is not plain.
    """
    plain = {name: value for name, value in values.items() if spelling.is_plain(value)}
    others = {name: value for name, value in values.items() if name not in plain}
    for name, value in others.items():
        if _AT_START.fullmatch(name):
            msg = (
                f"environment variable {name}={value!r} cannot reach other hosts unchanged: only "
                "letters, digits and _./:=- pass the shells on the way; change or unset it"
            )
            raise RecipeError(msg)
    if others:
        plain[PACKED] = spelling.spell(json.dumps(others))
    return "".join(f"{name}={value}\n" for name, value in plain.items())


def unpacked(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that came packed; none if nothing did."""
    given = environment.get(PACKED)
    return dict(json.loads(spelling.read(given))) if given else {}
