"""One process of the timed sums: meets the others, then sums with each, and with all at once.

``python -m launcher.doctor.trial NAME ...`` with what a launch sets (RANK, MASTER_ADDR, ...). It
tells how far it has come, one JSON object a line, and ends when nobody listens any more.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from statistics import median
from typing import Any

from configs.errors import OnwardError
from launcher.doctor.probe import MARK

JOIN_SECONDS = 30.0
"""To come to rank 0, once torch is imported."""
LIMIT = timedelta(seconds=30)
"""Of every collective."""
_MIB = 1 << 20
_LARGEST = 64 * _MIB
_ABOUT = 0.25
"""Seconds that one large sum should take."""
_SMALL_SUMS, _LARGE_SUMS = 20, 3
Total = Callable[[Any], Any]
"""Sums a tensor over a group, in place."""


def main() -> None:
    """Say ``started``, ``called``, ``joined``, ``measured``; or ``failed``, and why."""
    threading.Thread(target=_end_with_listener, daemon=True).start()
    try:
        _say("measured", **_take_part())
    except (OnwardError, RuntimeError, OSError) as error:
        _say("failed", error=str(error))
    # What a broken group has left would abort the process aloud.
    sys.stdout.flush()
    os._exit(0)


def _take_part() -> dict[str, Any]:
    import torch

    from engine import distributed

    torch.set_num_threads(1)
    _say("started")
    _call_first()
    _say("called")
    with distributed.joined(limit=LIMIT):
        _say("joined")
        device = distributed.device()
        pairs = []
        for members in _own_pairs(distributed.rank(), distributed.world()):
            if members:
                total = distributed.among(members, LIMIT)
                pairs.append({"ranks": list(members), **_timed(total, 2, device)})
            distributed.barrier()
        everybody = list(range(distributed.world()))
        over_all = _timed(distributed.among(everybody, LIMIT), len(everybody), device)
    return {"device": device.type, "pairs": pairs, "all": over_all}


def _own_pairs(rank: int, world: int) -> Iterator[tuple[int, ...]]:
    """This rank's pair of every round; empty where it rests."""
    for games in rounds(world):
        yield next((pair for pair in games if rank in pair), ())


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """A tournament: every pair once, nobody twice in a round (the circle method)."""
    players: list[int | None] = list(range(count))
    if count % 2:
        players.append(None)
    found = []
    for _ in range(len(players) - 1):
        games = zip(players[: len(players) // 2], reversed(players), strict=False)
        found.append([(min(a, b), max(a, b)) for a, b in games if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def _timed(total: Total, members: int, device: Any) -> dict[str, float]:
    """Seconds of a sum of four bytes, and bytes/s that each member sends in a large one."""
    import torch

    small = torch.zeros(1, device=device)
    _seconds(total, small)
    latency = median(_seconds(total, small) for _ in range(_SMALL_SUMS))
    large = torch.zeros(_MIB // 4, device=device)
    _seconds(total, large)
    taken = _agreed(total, _seconds(total, large), members, device)
    if taken < _ABOUT:
        size = min(_LARGEST, int(_MIB * _ABOUT / max(taken, 1e-6)))
        large = torch.zeros(size // 4, device=device)
        _seconds(total, large)
        # The best, as others may have had the network, or the cores, for a moment.
        taken = min(_seconds(total, large) for _ in range(_LARGE_SUMS))
    sent = 2 * (members - 1) / members * large.nbytes
    return {"latency": latency, "bandwidth": sent / taken, "bytes": large.nbytes}


def _agreed(total: Total, seconds: float, members: int, device: Any) -> float:
    """The members' mean, so that all decide alike."""
    import torch

    told = torch.tensor([seconds], device=device)
    total(told)
    return float(told) / members


def _seconds(total: Total, tensor: Any) -> float:
    import torch

    start = time.perf_counter()
    total(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _call_first() -> None:
    """A plain connection to rank 0, so that who cannot reach it is told from who waits for others.

    Raises:
        OSError: with the address.
    """
    if os.environ["RANK"] == "0":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def _end_with_listener() -> None:
    sys.stdin.read()
    os._exit(1)


def _say(event: str, **facts: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps({'event': event, **facts})}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
