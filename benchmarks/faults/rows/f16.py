"""F16: hosts that are gone, unreachable or called over the wrong network."""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.rows.row import Measured, Row
from tests.cluster.hosts import Cluster, Started, cluster, wait_until

LIMIT = 5.0
"""Seconds: of a collective, and for all ranks to come."""
SLACK = 2.0
_LONGEST = 120.0


def _start(made: Cluster, rank: int, **more: str) -> tuple[Started, Path]:
    log = made.folder / f"rank-{rank}"
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": made.hosts[0].address,
        "MASTER_PORT": "29500",
        "ONWARD_JOIN_SECONDS": str(LIMIT),
    }
    command = [sys.executable, "-m", "benchmarks.faults.joining", str(LIMIT)]
    return made.hosts[rank].start(command, log, **(environment | more)), log


def _told(log: Path, word: str) -> tuple[float, str]:
    """When a rank said it, and what else."""

    def lines() -> list[str]:
        whole = log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in whole if line.startswith(f"{word} ")]

    wait_until(lambda: bool(lines()), _LONGEST, f"{word} in {log}")
    line = lines()[0]
    _, when, *rest = line.split(" ", 2)
    return float(when), " ".join(rest)


def _link_cut(made: Cluster) -> tuple[float, str]:
    started = [_start(made, rank) for rank in range(2)]
    since = max(_told(log, "joined")[0] for _, log in started)
    made.hosts[1].cut()
    failed = [_told(log, "failed") for _, log in started]
    made.hosts[1].mend()
    # All that a bare collective can tell; that a run then names the host is tried in tests/cluster.
    return max(when for when, _ in failed) - since, "node-2" if failed[0][1] else ""


def _gone(made: Cluster) -> tuple[float, str]:
    _, log = _start(made, 0)
    when, said = _told(log, "failed")
    return when - _told(log, "begin")[0], said.replace("missing: rank 1", "missing: node-2")


def _unroutable(made: Cluster) -> tuple[float, str]:
    _, log = _start(made, 1, MASTER_ADDR="192.0.2.1")
    when, said = _told(log, "failed")
    return when - _told(log, "begin")[0], said


def _wrong_interface(made: Cluster) -> tuple[float, str]:
    started = [_start(made, 0), _start(made, 1, GLOO_SOCKET_IFNAME="lo")]
    begun = max(_told(log, "begin")[0] for _, log in started)
    when, said = _told(started[0][1], "failed")
    return when - begun, said


_FAULTS: dict[str, Callable[[Cluster], tuple[float, str]]] = {
    "link cut in a collective": _link_cut,
    "host gone before the start": _gone,
    "address without a route": _unroutable,
    "interface that leads nowhere": _wrong_interface,
}


def measure(repeats: int, folder: Path) -> Measured:
    """Two ranks on two hosts, each fault ``repeats`` times; kept if in time and by name."""
    held, slowest, notes = 0, dict.fromkeys(_FAULTS, 0.0), []
    with cluster(2, folder / "cluster") as made:
        for name, fault in [*_FAULTS.items()] * repeats:
            seconds, said = fault(made)
            slowest[name] = max(slowest[name], round(seconds, 1))
            if seconds <= LIMIT + SLACK and "node-2" in said:
                held += 1
            else:
                notes.append(f"{name}: {seconds:.1f} s: {said[:200]}")
    figures: dict[str, float | int | str] = {"limit (s)": LIMIT}
    figures |= {f"{name} (s)": seconds for name, seconds in slowest.items()}
    return Measured(held, len(_FAULTS) * repeats, figures, tuple(notes))


ROW = Row(
    id="F16",
    fault="link cut, host gone before the start, address without a route, wrong interface",
    promise="noticed within the limit and two seconds; who did not come, or was called, is named",
    measure=measure,
    repeats=1,
)
