"""What a run was made with: versions, commit, hosts, seed, command."""

import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.run_folder import RunFolder, now, read_json, write_atomically
from launcher.secrecy import mask_word

_PACKAGES = (
    "onward",
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "numpy",
    "safetensors",
    "pydantic",
)


def record(
    run: RunFolder,
    seed: int,
    command: Sequence[str],
    hosts: Mapping[str, int],
    threads: int | None,
) -> None:
    """Write ``provenance.json``: this invocation, and below ``history`` the ones before it.

    ``hosts`` tells how many processes each host runs; ``threads`` how many each process sums
    with, on which the last bits of a sum depend (None: every host shares out its own cores).
    """
    before = read_json(run.provenance) or {}
    history = [*before.pop("history", []), before] if before else []
    this: dict[str, Any] = {
        "started": now(),
        "command": list(command),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "hosts": dict(hosts),
        "threads": threads,
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "commit": commit(),
    }
    text = json.dumps({**this, "history": history}, indent=1, ensure_ascii=False)
    write_atomically(run.provenance, text + "\n")


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit that this code stands at, ``+changes`` if edited; None outside a repository."""
    source = Path(__file__).parent
    head = _git(source, "rev-parse", "HEAD")
    if head is None or _git(source, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return head + ("+changes" if _git(source, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line() -> list[str]:
    """This process's command, as typed but for what looks secret in it."""
    return [Path(sys.argv[0]).name, *map(mask_word, sys.argv[1:])]
