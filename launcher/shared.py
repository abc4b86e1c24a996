"""Whether other hosts see the run folder and the data, asked over ssh before a launch."""

import os
import secrets
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import LaunchError
from launcher.agreement import is_there
from launcher.exports import own_environment
from launcher.hosts import SSH, Host
from launcher.run_folder import write_atomically

SECONDS = 15
"""In which a shared file system shows on one host what another has written."""


def require_shared(hosts: Sequence[Host], folder: Path, paths: Sequence[Path] = ()) -> None:
    """Write a word into the run folder, and have every other host read it.

    Raises:
        LaunchError: lists the hosts that do not see it, or lack one of ``paths`` that is here.
    """
    others = [host.name for host in hosts if not host.is_here]
    if not others:
        return
    word = secrets.token_hex(8)
    token = folder / f".shared-{word}"
    write_atomically(token, word)
    here = [path for path in paths if is_there(path)]
    try:
        with ThreadPoolExecutor(max_workers=min(32, len(others))) as pool:
            answers = list(pool.map(lambda name: _ask(name, token, word, here), others))
    finally:
        token.unlink(missing_ok=True)
    lines = [
        f"{name}: {line}" for name, found in zip(others, answers, strict=True) for line in found
    ]
    if lines:
        hint = (
            "The run folder and the data must be at the same path on a file system that all "
            "hosts share (the data may be copies instead)."
        )
        raise LaunchError("\n".join(["hosts that do not see the same files:", *lines, hint]))


def _ask(name: str, token: Path, word: str, paths: Sequence[Path]) -> list[str]:
    try:
        done = subprocess.run(
            [*SSH, name, _script(token, paths)],
            env=own_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS + 15,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"no answer within {SECONDS + 15} s; does a file system hang there?"]
    said = done.stdout.splitlines()
    if done.returncode == 255 or "end" not in said:
        return [(done.stderr.strip().splitlines() or [f"ssh exit {done.returncode}"])[-1]]
    lines = [] if word in said else [f"what was written into {token.parent} is not there"]
    return lines + [f"there is no {path}" for path in paths if f"no {path}" in said]


def _script(token: Path, paths: Sequence[Path]) -> str:
    """For a POSIX shell. Listing the folder makes a network file system look again."""
    folder, file = shlex.quote(str(token.parent)), shlex.quote(str(token))
    wait = (
        f"n=0; until cat {file} 2>/dev/null && echo || [ $n -ge {SECONDS} ]; "
        f"do n=$((n+1)); ls -a {folder} >/dev/null 2>&1; sleep 1; done"
    )
    missing = [f"[ -e {shlex.quote(str(p))} ] || echo no {shlex.quote(str(p))}" for p in paths]
    return "; ".join([wait, *missing, "echo end"])
