"""A process group of our own: started, and ended whole."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Tell = Callable[[str], None]
"""Takes one line for the person who watches."""


def start_group(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command in a session of its own, its output and its stdin piped to us.

    ``folder`` is the one it works in; None: this process's.

    Nothing is ever written to the stdin: that it closes tells the workers that we are gone.
    """
    return subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end_group(process: subprocess.Popen[str], grace: float) -> None:
    """End every process of the group: SIGTERM, and SIGKILL after ``grace`` seconds.

    Whoever is interrupted while they end leaves nobody behind: SIGKILL at once.
    """
    try:
        _end_in_order(process, grace)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def end_leader(process: subprocess.Popen[str]) -> None:
    """End the first process of a group alone, at once: what it would do at a signal is unwanted."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _end_in_order(process: subprocess.Popen[str], grace: float) -> None:
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if not group_members(process.pid):
            break
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        _wait_until_empty(process, seconds)
    process.wait()


def close_pipes(process: subprocess.Popen[str]) -> None:
    """Let go of a group that has ended."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _wait_until_empty(process: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process.poll()
        if not group_members(process.pid):
            return
        time.sleep(0.05)


def group_members(group: int) -> list[int]:
    """The living processes of a group, zombies left out (nobody may be there to reap them)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent group ...; the name may hold anything, even a bracket
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(entry.parts[2]))
    return found
