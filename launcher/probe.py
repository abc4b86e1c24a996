"""Where rank 0 can be found: its host's address and a free port of it, told by that host.

Here it is imported; another host's Python reads it from stdin. The standard library alone.
"""

import json
import random
import socket
import sys
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000


def free_port(address: str = "") -> int:
    """A port that nobody listens on.

    Below those that the kernel gives to outgoing connections, if there is one: nobody takes it by
    chance before rank 0 does.
    """
    highest = ephemeral_range()[0]
    if highest > _LOWEST + 1000:
        for _ in range(64):
            port = random.SystemRandom().randrange(_LOWEST, highest)
            if not trouble(port, address):
                return port
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def ephemeral_range() -> tuple[int, int]:
    """The ports that the kernel gives out itself."""
    try:
        first, last = _RANGE.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 32_768, 60_999
    return int(first), int(last)


def trouble(port: int, address: str = "") -> str:
    """Why nobody can listen on a port: who holds it, or what the system says; empty if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            pid = holder(port)
            return f"in use by process {pid}" if pid else str(error.strerror)
    return ""


def holder(port: int) -> int | None:
    """The process of this host that listens on a port, as far as this user may see."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":
                sockets.add(f"socket:[{fields[9]}]")
    return _owner(sockets) if sockets else None


def _owner(sockets: set[str]) -> int | None:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) in sockets:
                return int(link.parts[2])
        except OSError:
            continue
    return None


def address_toward(target: str) -> str:
    """This host's own address on the way to another host; OSError if there is no way."""
    found = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)
    family, kind, _, _, place = min(found, key=lambda answer: answer[0] == socket.AF_INET6)
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def is_own(address: str) -> bool:
    """Whether an address, or what a name resolves to, is one of this host's."""
    found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    for family, kind, _, _, place in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(place)
            except OSError:
                continue
            return True
    return False


def look(address: str, port: int, target: str, listen: str = "") -> dict[str, str | int]:
    """Address and port of rank 0 on this host.

    Args:
        address: as the user gave it, or empty: the one on the way to ``target``.
        port: as the user gave it, or 0: a free one.
        target: another host of the run; empty if all ranks are on this one.
        listen: where rank 0 listens, if the others know it by another address (NAT).

    Returns:
        ``address`` and ``port``, and ``trouble`` with one of them.
    """
    found: dict[str, str | int] = {"host": socket.gethostname()}
    try:
        if address and not is_own(listen or address):
            wrong = f"ONWARD_LISTEN={listen} " if listen else ""
            found["address_trouble"] = f"{wrong}is not an address of this host"
        found["address"] = address or (address_toward(target) if target else "127.0.0.1")
    except OSError as error:
        found["address"] = address
        found["address_trouble"] = str(error.strerror or error)
    found["port"] = port or free_port()
    why = trouble(port) if port else ""
    if why:
        found["port_trouble"] = why
    return found


if __name__ == "__main__":
    # python - ADDRESS PORT TARGET LISTEN, where '-' stands for none
    _address, _port, *_others = ("" if word == "-" else word for word in sys.argv[1:5])
    sys.stdout.write(json.dumps(look(_address, int(_port or 0), *_others)) + "\n")
