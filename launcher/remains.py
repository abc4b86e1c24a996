"""What a launch that has ended may have left at work on other hosts: found, and ended, by id."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.blame import host_of_rank
from launcher.exports import own_environment
from launcher.hosts import SSH, Host
from launcher.outcome import read_outcomes
from launcher.spelling import spell

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


def end_remains(folder: Path, hosts: Sequence[Host], seconds: float = 20.0) -> dict[str, list[int]]:
    """End the ranks of an earlier launch on other hosts; which were still there, by host.

    Only what has left its number in ``folder`` is looked for. A host that does not answer is left
    to its own: ranks there end when they see another launch, or none, in that folder.
    """
    by_host: dict[str, list[int]] = {}
    try:
        outcomes = read_outcomes(folder)
    except (OSError, ValueError):
        return {}
    for outcome in outcomes:
        name = host_of_rank(outcome.rank, outcome.host, hosts)
        by_host.setdefault(name, []).append(outcome.pid)
    others = {h.name: by_host[h.name] for h in hosts if h.name in by_host and not h.is_here}
    return _end_on(others, f"--report_to={spell(str(folder))}", seconds) if others else {}


def _end_on(pids: Mapping[str, Sequence[int]], mark: str, seconds: float) -> dict[str, list[int]]:
    def end(name: str) -> list[int]:
        words = " ".join([shlex.quote(mark), *map(str, pids[name])])
        try:
            done = subprocess.run(
                [*SSH, name, f"sh -s -- {words}"],
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

    with ThreadPoolExecutor(max_workers=min(32, len(pids))) as pool:
        found = dict(zip(pids, pool.map(end, pids), strict=True))
    return {name: ended for name, ended in found.items() if ended}
