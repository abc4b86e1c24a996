"""Where the ranks meet: an address of rank 0's host that the others reach, and a free port."""

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import Cause, LaunchError, RecipeError, ResourceError
from engine.listening import VARIABLE
from launcher import probe, spelling
from launcher.exports import own_environment
from launcher.hosts import Host
from launcher.own_names import addresses

_SECONDS = 30.0
ASKED = "ASKED-OF-RANK-0"
"""Stands in a command that is only shown, for what another host is asked at the start."""


@dataclass(frozen=True, slots=True)
class Master:
    """Rank 0's place."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user says of it; empty and None: to be found out.

    Attributes:
        listen: where it listens, if the others reach it at another address.
    """

    address: str = ""
    port: int | None = None
    listen: str = ""


def find(hosts: Sequence[Host], wish: Wish, reach: Sequence[str]) -> Master:
    """Address and port on the first host, checked there.

    Args:
        hosts: in order; none: this machine.
        wish: what was asked for.
        reach: how to run a command on the first host, up to its name.

    Raises:
        RecipeError: an address that is none.
        LaunchError: the address is not the first host's, or only it can reach it; or the host
            cannot be asked.
        ResourceError: the port is in use; by which process.
    """
    for what, given in (("--master-addr", wish.address), (VARIABLE, wish.listen)):
        if not spelling.is_plain(given):
            msg = f"{what} {given}: expected an address or a name"
            raise RecipeError(msg)
    target = target_of(hosts)
    first = hosts[0] if hosts else Host("localhost", 1)
    if first.is_here:
        told = probe.look(wish.address, wish.port or 0, target, wish.listen)
    else:
        told = _ask(first, wish, target, reach)
    return _judged(first, hosts, wish, told)


def target_of(hosts: Sequence[Host]) -> str:
    """An address of the second host as this machine sees it, or its name as the first may."""
    if len(hosts) < 2:
        return ""
    name = hosts[1].name
    found = addresses(name) or addresses(_alias(name))
    return found[0] if found else name


def _alias(name: str) -> str:
    """What a name of ~/.ssh/config stands for."""
    try:
        done = subprocess.run(
            ["ssh", "-G", name],
            env=own_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return name
    lines = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    return lines.get("hostname", name)


def _ask(first: Host, wish: Wish, target: str, reach: Sequence[str]) -> dict[str, Any]:
    words = [wish.address or "-", str(wish.port or 0), target or "-", wish.listen or "-"]
    hint = "is the same Python there at the same path?"
    try:
        done = subprocess.run(
            [*reach, sys.executable, "-", *words],
            env=own_environment(os.environ),
            input=Path(probe.__file__).read_text(encoding="utf-8"),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        answer = done.stdout.strip().splitlines()[-1:]
        return dict(json.loads(answer[0])) if answer else _no_answer(first, done.stderr, hint)
    except subprocess.TimeoutExpired:
        return _no_answer(first, f"no answer within {_SECONDS:.0f} s", hint)
    except (OSError, ValueError) as error:
        return _no_answer(first, str(error), hint)


def _no_answer(first: Host, said: str, hint: str) -> dict[str, Any]:
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    msg = f"{first.name} could not be asked for its address and a free port: {last}; {hint}"
    raise LaunchError(msg)


def _judged(first: Host, hosts: Sequence[Host], wish: Wish, told: dict[str, Any]) -> Master:
    address, port = str(told["address"]), int(told["port"])
    if why := told.get("address_trouble"):
        what = f"--master-addr {wish.address}" if wish.address else "no address for rank 0"
        msg = (
            f"{what}: on {first.name} (host name {told['host']}): {why}; rank 0 listens on "
            f"{first.name}: give an address of it that the other hosts reach"
        )
        raise LaunchError(msg)
    if len(hosts) > 1 and _is_loopback(address):
        msg = (
            f"rank 0's address would be {address}, which only {first.name} itself can reach: does "
            f"/etc/hosts give {hosts[1].name} or {first.name} a 127... address? Correct it, or "
            "give --master-addr"
        )
        raise LaunchError(msg)
    if why := told.get("port_trouble"):
        msg = f"port {port} on {first.name}: {why}; give another --master-port, or none"
        raise ResourceError(msg, Cause("port"))
    return Master(address, port)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return any(ipaddress.ip_address(found).is_loopback for found in addresses(address))


def shown(hosts: Sequence[Host], wish: Wish) -> tuple[str, str]:
    """Address and port for a command that is only shown: no other host is asked."""
    if not hosts or hosts[0].is_here:
        found = find(hosts, wish, ())
        return found.address, str(found.port)
    return wish.address or ASKED, str(wish.port or ASKED)
