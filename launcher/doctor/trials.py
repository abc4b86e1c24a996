"""Timed sums between every two hosts and over all: started as a launch would start its ranks."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launcher.doctor.conversation import Conversation, SilenceError
from launcher.doctor.trial import JOIN_SECONDS, LIMIT, rounds

_MODULE = "launcher.doctor.trial"
_START_SECONDS = 90.0
"""To start Python and import torch, from a slow file system if need be."""
_ROUND_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes come together.

    Attributes:
        names: one process on each; by rank.
        address: rank 0's.
        port: rank 0's.
        values: the environment that a launch hands over.
        by_ssh: else all are started here.
    """

    names: Sequence[str]
    address: str
    port: int
    values: Mapping[str, str]
    by_ssh: bool


def collectives(meeting: Meeting) -> dict[str, Any]:
    """What was measured, or how far each process came.

    ``place``: ADDRESS:PORT of rank 0. ``came``: by host, the last thing its process said;
    ``errors``: by host. If all were done also ``device``, ``pairs`` (``hosts``, ``latency`` in
    seconds, ``bandwidth`` in bytes/s, ``bytes``) and ``all``.
    """
    with ThreadPoolExecutor(max_workers=max(2, len(meeting.names))) as pool:
        told = list(pool.map(lambda rank: _follow(meeting, rank), range(len(meeting.names))))
    found: dict[str, Any] = {
        "place": f"{meeting.address}:{meeting.port}",
        "came": {n: t["event"] for n, t in zip(meeting.names, told, strict=True)},
        "errors": {n: t["error"] for n, t in zip(meeting.names, told, strict=True) if t["error"]},
    }
    if not found["errors"]:
        found |= _gathered(meeting.names, told)
    return found


def _gathered(names: Sequence[str], told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each pair by its first member's clock."""
    pairs = [
        {"hosts": [names[r] for r in pair["ranks"]]} | {k: pair[k] for k in pair if k != "ranks"}
        for rank, one in enumerate(told)
        for pair in one["pairs"]
        if pair["ranks"][0] == rank
    ]
    return {"device": told[0]["device"], "pairs": pairs, "all": told[0]["all"]}


def _follow(meeting: Meeting, rank: int) -> dict[str, Any]:
    """The last that one process has said; ``error`` if it was not that it is done."""
    world = len(meeting.names)
    values = {
        **meeting.values,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
    }
    name = meeting.names[rank] if meeting.by_ssh else None
    talk = Conversation(name, values, _MODULE)
    waits = {
        "started": _START_SECONDS,
        "called": _START_SECONDS + JOIN_SECONDS,
        "joined": _START_SECONDS + JOIN_SECONDS,
        "measured": LIMIT.total_seconds() + _ROUND_SECONDS * len(rounds(world)),
    }
    event = "nothing"
    try:
        for awaited, seconds in waits.items():
            said = talk.hear(awaited, seconds)
            if said["event"] == "failed":
                return {"event": event, "error": said["error"]}
            event = said["event"]
    except SilenceError as silence:
        last = (silence.reason.said.splitlines() or [f"exit code {silence.reason.code}"])[-1]
        return {"event": event, "error": last}
    finally:
        talk.close()
    return {**said, "error": ""}
