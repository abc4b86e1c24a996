"""What a launch that has ended may have left at work on other hosts: found, and ended, by id."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.blame import host_of_rank
from launcher.exports import own_environment
from launcher.hosts import Host
from launcher.outcome import read_outcomes
from launcher.spelling import spell

Reach = Callable[[Host], list[str]]
# A number may be another process's by now: only one whose command names this launch's folder is
# ended. Those that have not left word yet see another launch in its folder, and end themselves.
_SCRIPT = """\
mark=$1; shift
for pid in "$@"; do
  if tr '\\0' '\\n' < "/proc/$pid/cmdline" 2>/dev/null | grep -qxF -e "$mark"; then
    kill -KILL "$pid" && echo "$pid"
  fi
done
"""


def end_remains(
    folder: Path, hosts: Sequence[Host], reach: Reach, seconds: float = 20.0
) -> dict[str, list[int]]:
    """End the ranks of an earlier launch on other hosts; which were still there, by host.

    Only what has left its number in ``folder`` is looked for. A host that does not answer is left
    to its own: ranks there end when they see another launch, or none, in that folder.

    Args:
        folder: of the launch.
        hosts: that it had, in order.
        reach: how to run a command on a host, as a launcher's ``reach`` has it.
        seconds: until an answer is not waited for any more.
    """
    by_host: dict[str, list[int]] = {}
    try:
        outcomes = read_outcomes(folder)
    except (OSError, ValueError):
        return {}
    for outcome in outcomes:
        name = host_of_rank(outcome.rank, outcome.host, hosts)
        by_host.setdefault(name, []).append(outcome.pid)
    others = {h: by_host[h.name] for h in hosts if h.name in by_host and not h.is_here}
    if not others:
        return {}
    mark = f"--report_to={spell(str(folder))}"
    commands = {
        host.name: [*reach(host), "sh", "-s", "--", mark, *map(str, pids)]
        for host, pids in others.items()
    }
    return _run_on(commands, seconds)


def _run_on(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, list[int]]:
    """The numbers that each has answered; a spelled word is the same to every shell."""

    def run(command: Sequence[str]) -> list[int]:
        try:
            done = subprocess.run(
                command,
                env=own_environment(os.environ),
                input=_SCRIPT,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        return [int(line) for line in done.stdout.split() if line.isdecimal()]

    with ThreadPoolExecutor(max_workers=min(32, len(commands))) as pool:
        found = dict(zip(commands, pool.map(run, commands.values()), strict=True))
    return {name: ended for name, ended in found.items() if ended}
