"""Which addresses the processes of a run listen on: one of their own, never all of a machine."""

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any

from configs.errors import Cause, LaunchError

VARIABLE = "ONWARD_LISTEN"
"""The address that rank 0 listens on, where it is another than the one that the others call."""
_LOOPBACK = "lo"
_BACKLOG = 4096
"""As many ranks may call at once; the kernel's own limit (net.core.somaxconn) is often this."""


def meeting_socket(environment: Mapping[str, str] = os.environ) -> socket.socket:
    """Where rank 0 waits for the others: at MASTER_ADDR, or ONWARD_LISTEN, and MASTER_PORT.

    Torch's own would listen on every address of the machine.

    Raises:
        LaunchError: the address is none of this host's, is one that the other hosts cannot
            reach, or its port is taken.
    """
    name = environment.get(VARIABLE) or environment["MASTER_ADDR"]
    where = f"{name}:{environment['MASTER_PORT']}"
    try:
        family, _, _, _, address = _resolved(name, environment["MASTER_PORT"])
    except (OSError, UnicodeError, OverflowError) as error:
        msg = f"rank 0 cannot listen at {where}: {error}; {_TO_DO}"
        raise LaunchError(msg) from error
    _require_reachable(str(address[0]), where, environment)
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        # What ended a moment ago still holds its port for a minute.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        cause = Cause("port") if error.errno == errno.EADDRINUSE else None
        raise LaunchError(_refusal(error, where), cause) from error
    return opened


def keep_to_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Of processes that are all on this host: have gloo and NCCL listen on its loopback alone.

    Left to themselves they take the address behind the host's name. What is set already stays.
    """
    if not is_loopback(environment.get("MASTER_ADDR", "")):
        return
    if _LOOPBACK in {name for _, name in socket.if_nameindex()}:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(variable, _LOOPBACK)


def is_loopback(address: str) -> bool:
    """Whether it is this machine's own address, which no other can reach."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


_TO_DO = (
    f"MASTER_ADDR must be an address of rank 0's host; where the others know it by another one, "
    f"set {VARIABLE} to the address to listen on (0.0.0.0: all of them)"
)


def _resolved(name: str, port: str) -> tuple[Any, Any, Any, Any, Any]:
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # Torch's clients try both kinds; where a name has both, IPv4 is what all networks carry.
    return min(found, key=lambda each: each[0] != socket.AF_INET)


def _require_reachable(address: str, where: str, environment: Mapping[str, str]) -> None:
    """A name may stand for 127.0.1.1 on its own host (/etc/hosts), and for others elsewhere."""
    here = environment.get("LOCAL_SIZE")
    several = here is not None and int(here) < int(environment["WORLD_SIZE"])
    if several and is_loopback(address):
        msg = f"rank 0 would listen at {where}, which is {address} on its own host alone; {_TO_DO}"
        raise LaunchError(msg)


def _refusal(error: OSError, where: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"rank 0 cannot listen at {where}: another process does; give another port"
    return f"rank 0 cannot listen at {where}: {error.strerror}; {_TO_DO}"
