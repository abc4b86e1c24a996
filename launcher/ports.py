"""TCP ports: a free one, or who holds the one asked for."""

import socket
from pathlib import Path

from configs.errors import Cause, ResourceError


def free_port(address: str = "") -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def require_free(port: int) -> int:
    """The port itself; ResourceError names the process that holds it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            msg = f"port {port}: {_reason(port, error)}; give another one, or none for a free one"
            raise ResourceError(msg, Cause("port")) from None
    return port


def _reason(port: int, error: OSError) -> str:
    pid = holder(port)
    return f"in use by process {pid}" if pid else str(error.strerror)


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
    return _owner(sockets)


def _owner(sockets: set[str]) -> int | None:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) in sockets:
                return int(link.parts[2])
        except OSError:
            continue
    return None
