"""F18: a port that is taken, an address that is not rank 0's, one that only its host reaches."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import LaunchError, OnwardError, ResourceError
from launcher import master, probe
from launcher.hosts import Host
from launcher.master import Wish

_HOLD = (
    "import socket, sys; server = socket.create_server(('', int(sys.argv[1]))); "
    "print('held', flush=True); sys.stdin.read()"
)


def _taken(port: int, stated: Callable[[], None]) -> int:
    """Another process holds a port while something is tried; its number."""
    command = [sys.executable, "-c", _HOLD, str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        if holder.stdout is None or holder.stdout.readline() != "held\n":
            msg = f"port {port} could not be taken for the test"
            raise ResourceError(msg)
        try:
            stated()
        finally:
            holder.kill()
    return holder.pid


def _said(kind: type[OnwardError], hosts: tuple[Host, ...], wish: Wish) -> str:
    try:
        master.find(hosts, wish, ())
    except kind as error:
        return str(error)
    return ""


def _trials(seed: int) -> dict[str, Callable[[], bool]]:
    draw = random.Random(seed)
    here = (Host(socket.gethostname(), 1),)
    # Documentation's own addresses (RFC 5737), of which none is this machine's or anybody's.
    foreign = f"198.51.100.{draw.randrange(1, 255)}"
    other = (*here, Host(f"203.0.113.{draw.randrange(1, 255)}", 1))
    loop = (*here, Host(f"127.0.1.{draw.randrange(1, 255)}", 1))

    def taken() -> bool:
        port, said = probe.free_port(), [""]

        def ask() -> None:
            said[0] = _said(ResourceError, here, Wish(port=port))

        pid = _taken(port, ask)
        return f"in use by process {pid}" in said[0] and str(port) in said[0]

    def chosen() -> bool:
        """Thousands of ports are looked at only if many are taken; one is never given twice."""
        found = master.find(here, Wish(), ())
        with socket.create_server(("", found.port)):
            below = found.port < probe.ephemeral_range()[0]
            return below and master.find(here, Wish(), ()).port != found.port

    return {
        "a port that another process holds": taken,
        "a free port": chosen,
        "an address of another machine": lambda: (
            foreign in _said(LaunchError, other, Wish(foreign))
        ),
        "a second host at a loopback address": lambda: (
            "/etc/hosts" in _said(LaunchError, loop, Wish())
        ),
        "a loopback address for several hosts": lambda: (
            "only" in _said(LaunchError, other, Wish("127.0.0.1"))
        ),
    }


def measure(repeats: int, folder: Path) -> Measured:
    """Each kind of wrong place, with other numbers each time."""
    del folder
    held, notes, slowest = 0, [], 0.0
    for repeat in range(repeats):
        for what, trial in _trials(repeat).items():
            started = time.monotonic()
            kept = trial()
            slowest = max(slowest, time.monotonic() - started)
            held += kept
            if not kept:
                notes.append(f"repeat {repeat}: {what}")
    of = repeats * len(_trials(0))
    return Measured(held, of, {"slowest answer, s": round(slowest, 2)}, tuple(notes))


ROW = Row(
    id="F18",
    fault="rank 0's port is in use; its address is another machine's, or a loopback one",
    promise="a free port is taken, or the holder's process named; a wrong address is refused",
    measure=measure,
    repeats=20,
)
