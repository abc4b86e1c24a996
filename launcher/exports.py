"""Which environment variables reach the other hosts, in the file that deepspeed reads them from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from configs.errors import RecipeError

# Nothing secret: deepspeed puts these on a command line that every user of the hosts can read.
_FORWARDED = (
    "ONWARD_CACHE",
    "ONWARD_JOIN_SECONDS",
    "ONWARD_REMOTE_DEADLINE",
    "ONWARD_REMOTE_TIMEOUT",
    "DS_ACCELERATOR",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
)
_NEEDS_QUOTES = re.compile(r"[^\w@%+=:,./-]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def exports(environment: Mapping[str, str], own_files: Sequence[Path]) -> dict[str, str]:
    """What is set here of the forwarded names, then what the user's own files say.

    Raises:
        RecipeError: a line that is not NAME=value.
    """
    found = {name: environment[name] for name in _FORWARDED if name in environment}
    for path in own_files:
        if path.is_file():
            found |= dict(_read(path))
    return found


def own_files(environment: Mapping[str, str]) -> list[Path]:
    """Where deepspeed itself would look: the home folder and this one."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    return [Path.home() / name, Path.cwd() / name]


def _read(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            msg = f"{path}:{number}: expected NAME=value"
            raise RecipeError(msg)
        yield name.strip(), value.strip()


def format_exports(values: Mapping[str, str]) -> str:
    """Lines that deepspeed turns into literal values on the other hosts.

    It puts a value with special characters between double quotes and escapes nothing.
    """
    lines = []
    for name, value in values.items():
        if "\n" in value:
            msg = f"environment variable {name}: a line break cannot be handed to other hosts"
            raise RecipeError(msg)
        quoted = re.sub(r'([\\"$`])', r"\\\1", value) if _NEEDS_QUOTES.search(value) else value
        lines.append(f"{name}={quoted}\n")
    return "".join(lines)
