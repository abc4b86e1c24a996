"""Which TCP sockets processes of this machine listen on, as the kernel tells (Linux)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTENS = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket."""

    pid: int
    address: IPv4Address | IPv6Address
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        mapped = self.address.ipv4_mapped if isinstance(self.address, IPv6Address) else None
        return (mapped or self.address).is_loopback

    def __str__(self) -> str:
        """As ``ss`` shows it."""
        shown = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{shown}:{self.port} (process {self.pid})"


def listeners(pids: Collection[int]) -> list[Listener]:
    """All that these processes listen on."""
    held = {inode: pid for pid in pids for inode in _sockets(pid)}
    return [
        Listener(held[inode], address, port) for inode, address, port in _table() if inode in held
    ]


def family(pid: int) -> set[int]:
    """A process and all that it has started, directly or not, as far as they live."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parts[2]))
    found, new = {pid}, [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, []) if child not in found]
        found.update(new)
    return found


def _sockets(pid: int) -> Iterator[str]:
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _table() -> Iterator[tuple[str, IPv4Address | IPv6Address, int]]:
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net") / name
        if not path.exists():
            continue
        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS:
                place, _, port = fields[1].partition(":")
                yield fields[9], _address(place), int(port, 16)


def _address(text: str) -> IPv4Address | IPv6Address:
    """The kernel writes an address as words in its own byte order."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return ip_address(b"".join(words))
