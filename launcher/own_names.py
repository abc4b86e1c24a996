"""Whether a host's name or address is this machine's; asks no name server unless it must."""

import functools
import ipaddress
import socket
import threading
from contextlib import suppress
from pathlib import Path

_HOSTS = Path("/etc/hosts")
_PATIENCE = 3.0


def is_this_machine(name: str) -> bool:
    """Whether it is ``localhost``, an address, the host name, or another name of this machine."""
    return _is_own(name, socket.gethostname())


@functools.lru_cache(maxsize=1024)
def _is_own(name: str, hostname: str) -> bool:
    if name in {"localhost", hostname}:
        return True
    if _is_address(name):
        return is_own_address(name)
    listed = _listed(name)
    if listed:
        return any(map(is_own_address, listed))
    # A name server is asked only of what may be the longer or shorter form of our name.
    if name.partition(".")[0] != hostname.partition(".")[0]:
        return False
    return any(map(is_own_address, addresses(name)))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_own_address(address: str) -> bool:
    """Whether packets to an address come from it, too: then it is one of this machine's."""
    if ipaddress.ip_address(address).is_loopback:
        return True
    return source_address(address) == address


def source_address(target: str) -> str | None:
    """This machine's own address on the way to another; None without a way. Sends nothing."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _listed(name: str) -> list[str]:
    """The addresses that /etc/hosts gives a name."""
    try:
        lines = _HOSTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name in names and _is_address(address):
            found.append(address)
    return found


def addresses(name: str, seconds: float = _PATIENCE) -> list[str]:
    """What a name resolves to, IPv4 first; empty if nobody knows it within some seconds."""
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            found.extend(_resolve(name))

    # A daemon: whoever waits for a silent name server keeps nobody from ending.
    asking = threading.Thread(target=ask, name="resolver", daemon=True)
    asking.start()
    asking.join(timeout=seconds)
    return list(found)


def _resolve(name: str) -> list[str]:
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    found = [str(answer[4][0]) for answer in answers]
    return sorted(dict.fromkeys(found), key=lambda address: ":" in address)
