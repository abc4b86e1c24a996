"""Timed sums between every two hosts and over all: started as a launch would start its ranks."""

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from launcher.doctor.conversation import Conversation, SilenceError
from launcher.doctor.trial import JOIN_SECONDS, LIMIT, rounds

_MODULE = "launcher.doctor.trial"
_START_SECONDS = 90.0
"""To start Python and import torch, from a slow file system if need be."""
_ROUND_SECONDS = 10.0
_GRACE_SECONDS = 5.0
GIVEN_UP = "given up, as another one had failed"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes come together.

    Attributes:
        names: one process on each; by rank.
        address: rank 0's.
        port: rank 0's.
        values: the environment that a launch hands over.
        ways: to each host by name; none: all are started here.
    """

    names: Sequence[str]
    address: str
    port: int
    values: Mapping[str, str]
    ways: Mapping[str, Sequence[str]]


def collectives(meeting: Meeting) -> dict[str, Any]:
    """What was measured, or how far each process came.

    ``place``: ADDRESS:PORT of rank 0. ``came``: by host, the last thing its process said;
    ``errors``: by host. If all were done also ``device``, ``pairs`` (``hosts``, ``latency`` in
    seconds, ``bandwidth`` in bytes/s, ``bytes``) and ``all``.
    """
    talks = [_start(meeting, rank) for rank in range(len(meeting.names))]
    with ThreadPoolExecutor(max_workers=len(talks)) as pool:
        following = [pool.submit(_follow, talk, len(talks)) for talk in talks]
        _end_after_the_first_failure(following, talks)
        told = [future.result() for future in following]
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


def _end_after_the_first_failure(
    following: Sequence[Future[dict[str, Any]]], talks: Sequence[Conversation]
) -> None:
    """The others would wait for it; they have some seconds to say something of their own."""
    left = set(following)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        if any(future.result()["error"] for future in done):
            wait(left, timeout=_GRACE_SECONDS)
            for future, talk in zip(following, talks, strict=True):
                if not future.done():
                    talk.give_up()
            return


def _start(meeting: Meeting, rank: int) -> Conversation:
    values = {
        **meeting.values,
        "RANK": str(rank),
        "WORLD_SIZE": str(len(meeting.names)),
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1" if meeting.ways else str(len(meeting.names)),
        "ONWARD_JOIN_SECONDS": f"{JOIN_SECONDS:g}",
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
    }
    return Conversation(meeting.ways.get(meeting.names[rank], ()), values, _MODULE)


def _follow(talk: Conversation, world: int) -> dict[str, Any]:
    """The last that one process has said; ``error`` if it was not that it is done."""
    waits = {
        "started": _START_SECONDS,
        "called": JOIN_SECONDS + _GRACE_SECONDS,
        "joined": JOIN_SECONDS + _GRACE_SECONDS,
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
        last = GIVEN_UP if talk.is_given_up else last
        return {"event": event, "error": last}
    finally:
        talk.close()
    return {**said, "error": ""}
