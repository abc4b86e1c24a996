"""Starts the two ranks, each in its host, and takes what they saw."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from benchmarks.two_hosts.hosts import INTERFACE, Host, two_hosts

if TYPE_CHECKING:
    from subprocess import Popen

_PORT = "29500"
"""Nobody else is in the namespaces."""
_LIMIT = 900.0


def seen_by_ranks() -> dict[str, Any]:
    """``cases``: an entry each, as rank 0 measured it; ``goes_first``: see rank.py.

    Raises:
        ResourceError: this machine can make no hosts.
        RuntimeError: a rank failed; its last words.
    """
    from launcher import jit
    from launcher.environment import cores, worker_environment

    # Whoever ends this process shall find no host left.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with two_hosts() as hosts, tempfile.TemporaryDirectory() as place:
            own = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            environment = worker_environment(own, len(hosts), 0, cores())
            os.environ.setdefault("TORCH_EXTENSIONS_DIR", environment["TORCH_EXTENSIONS_DIR"])
            jit.build_operators()
            answer = Path(place) / "answer.json"
            with _ranks(hosts, environment, answer) as (ranks, logs):
                _wait(ranks, logs)
            found: dict[str, Any] = json.loads(answer.read_bytes())
            return found
    finally:
        signal.signal(signal.SIGTERM, usual)


@contextmanager
def _ranks(
    hosts: Sequence[Host], environment: Mapping[str, str], answer: Path
) -> "Iterator[tuple[list[Popen[bytes]], list[Path]]]":
    """One rank a host, and what each says; killed at the end if they still run."""
    logs = [answer.parent / f"rank-{rank}.log" for rank in range(len(hosts))]
    ranks = []
    try:
        for rank, (host, log) in enumerate(zip(hosts, logs, strict=True)):
            own = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(hosts)),
                "LOCAL_RANK": "0",
                "LOCAL_SIZE": "1",
                "MASTER_ADDR": hosts[0].address,
                "MASTER_PORT": _PORT,
                "GLOO_SOCKET_IFNAME": INTERFACE,
            }
            command = [sys.executable, "-m", "benchmarks.two_hosts.rank", str(answer)]
            ranks.append(host.start(command, {**environment, **own}, log))
        yield ranks, logs
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(ranks: "Sequence[Popen[bytes]]", logs: Sequence[Path]) -> None:
    """Until both have ended; RuntimeError as soon as one fails, as the other would wait for it."""
    end = monotonic() + _LIMIT
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks) or monotonic() > end:
            break
        sleep(0.1)
    if any(process.poll() != 0 for process in ranks):
        codes = [process.poll() for process in ranks]
        last = [f"--- {log.stem}\n{log.read_text(errors='replace')[-2000:]}" for log in logs]
        told = "\n".join(last)
        msg = f"two hosts: the ranks ended with {codes} (None: it ran on)\n{told}"
        raise RuntimeError(msg)
