"""How the ranks of a run find each other: each leaves a card with rank 0, and all read all cards.

This comes before they talk to each other directly, so that who is missing, or would talk over the
wrong network, is named, and soon: a collective's own limit is far longer.
"""

import fcntl
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from configs.errors import LaunchError, RecipeError
from engine.listening import is_loopback

VARIABLE = "ONWARD_JOIN_SECONDS"
SECONDS = 300.0
"""Imports over a cold network file system take a minute or two."""
INTERFACE = "GLOO_SOCKET_IFNAME"
_POLL = 0.2
_TO_READ = 10.0
_ASK_ADDRESS = 0x8915
"""SIOCGIFADDR, see netdevice(7)."""
Card = Mapping[str, str]


class Store(Protocol):
    """What is used of torch's store."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


def _agree(cards: Sequence[Card]) -> None:
    del cards


def _ranks(missing: Sequence[int]) -> str:
    return f"rank{'' if len(missing) == 1 else 's'} {', '.join(map(str, missing))}"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What this process brings to the others.

    Attributes:
        facts: what it says of itself, beside where it is.
        compare: looks at all ranks' cards, on every rank; raises LaunchError if they do not fit.
        absent: names ranks that have not come.
    """

    facts: Card = field(default_factory=dict)
    compare: Callable[[Sequence[Card]], None] = _agree
    absent: Callable[[Sequence[int]], str] = _ranks


def join_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """How long ranks wait for each other at the start; RecipeError for what is no such number."""
    given = environment.get(VARIABLE, "")
    try:
        seconds = float(given or SECONDS)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        msg = f"{VARIABLE}={given}: expected seconds, 1 or more; {SECONDS:g} without it"
        raise RecipeError(msg)
    return seconds


def gather(
    store: Store, rank: int, world: int, meeting: Meeting, seconds: float | None = None
) -> list[Card]:
    """All ranks' cards by rank, once all have come.

    Raises:
        LaunchError: some have not come in time, or what they say does not fit together.
    """
    limit = join_seconds() if seconds is None else seconds
    place = {"host": socket.gethostname(), **own_network()}
    store.set(_key("card", rank), json.dumps({**place, **meeting.facts}))
    try:
        if missing := _wait(store, "card", world, limit):
            raise LaunchError(_not_come(missing, world, limit, meeting))
        cards = [json.loads(store.get(_key("card", number))) for number in range(world)]
        store.set(_key("read", rank), "1")
        if rank == 0:
            # It holds the store: if it left now, some would read that instead of the cards.
            _wait(store, "read", world, _TO_READ)
    except (RuntimeError, ValueError) as error:
        msg = f"rank {rank} on {place['host']}: rank 0 is gone: {error}"
        raise LaunchError(msg) from error
    require_one_network(cards)
    meeting.compare(cards)
    return cards


def _key(what: str, rank: int) -> str:
    return f"onward/{what}/{rank}"


def _wait(store: Store, what: str, world: int, seconds: float) -> list[int]:
    """Who has not left such a thing within so many seconds; nobody as soon as all have."""
    end = time.monotonic() + seconds
    keys = [_key(what, rank) for rank in range(world)]
    while not store.check(keys):
        if time.monotonic() > end:
            return [rank for rank, key in enumerate(keys) if not store.check([key])]
        time.sleep(_POLL)
    return []


def _not_come(missing: Sequence[int], world: int, limit: float, meeting: Meeting) -> str:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return (
        f"{world - len(missing)} of {world} ranks have come together at {where} within {limit:g} s;"
        f" missing: {meeting.absent(missing)}. Their hosts are off, or the processes there ended, "
        f"start slowly (then raise {VARIABLE}), or cannot reach that address and port"
    )


def own_network() -> dict[str, str]:
    """Which interface and address this process talks to the others by.

    ``GLOO_SOCKET_IFNAME`` says so. Where it does not, gloo would take the address behind the
    host's name, which many systems set to a loopback one: it is set to the interface that leads
    to rank 0.

    Raises:
        LaunchError: the variable names an interface that is not there.
    """
    names = [name for _, name in socket.if_nameindex()]
    given = os.environ.get(INTERFACE)
    if given:
        # As in NCCL's variable, there may be several, and the first is taken.
        name = given.split(",")[0]
        if name not in names:
            msg = (
                f"{socket.gethostname()} has no network interface {name}, which {INTERFACE} names; "
                f"there are {', '.join(names)}"
            )
            raise LaunchError(msg)
        return {"interface": name, "address": _address(name)}
    address = _toward(os.environ.get("MASTER_ADDR", ""))
    name = next((name for name in names if address and _address(name) == address), "")
    if name:
        os.environ[INTERFACE] = name
    return {"interface": name, "address": address}


def _toward(target: str) -> str:
    """This host's IPv4 address on the way there; empty if there is none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _address(interface: str) -> str:
    """An interface's IPv4 address; empty if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(
                probe.fileno(), _ASK_ADDRESS, struct.pack("256s", interface.encode()[:15])
            )
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def require_one_network(cards: Sequence[Card]) -> None:
    """LaunchError that names hosts whose interface no other host can reach."""
    if len({card["host"] for card in cards}) < 2:
        return
    found = {
        f"{card['host']} over {card['interface'] or 'no interface'} ({card['address']})": None
        for card in cards
        if is_loopback(card["address"])
    }
    if found:
        msg = (
            f"the other hosts cannot reach {', '.join(found)}; set {INTERFACE} (and "
            "NCCL_SOCKET_IFNAME) to the interface that joins the hosts, or to nothing"
        )
        raise LaunchError(msg)


def apart(rank: int, cards: Sequence[Card], error: Exception) -> str:
    """What to say when ranks that have met cannot talk to each other."""
    seen = {f"{card['host']} ({card['interface']} {card['address']})": None for card in cards}
    return (
        f"rank {rank} on {cards[rank]['host']} met the others, but cannot talk to all of them: "
        f"{error}\nThey are on {', '.join(seen)}. A firewall must let them reach each other there "
        f"on all ports; {INTERFACE} names another interface"
    )
