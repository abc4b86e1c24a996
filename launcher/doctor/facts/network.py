"""A host's addresses, a place where the other hosts can call it, and calls to theirs."""

import contextlib
import fcntl
import secrets
import socket
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from configs.errors import ResourceError
from launcher.ports import require_free

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_UP = 0x1


class Network:
    """Keeps its sockets open, so that others can call as long as this process lives."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def facts(self, chosen: str | None, port: int | None) -> dict[str, Any]:
        """Interfaces, what the host's own name means to it, and where it can be called.

        Args:
            chosen: the interface that processes are told to use.
            port: to be tried on this host, if it is rank 0's.
        """
        interfaces = _interfaces()
        own = _own_name()
        first = _first_address()
        address = _meeting_address(interfaces, own, chosen)
        trouble = _port_trouble(port)
        wanted = dict.fromkeys((a, 0) for a in (address, first) if a)
        if port and first and not trouble:
            wanted[first, port] = None
        return {
            "interfaces": interfaces,
            "own_name": own,
            "first_address": first,
            "address": address,
            "listens": [found for at in wanted if (found := self._listen(*at)) is not None],
            "port_trouble": trouble,
        }

    def _listen(self, address: str, port: int) -> dict[str, Any] | None:
        """Let others call at a port (0: a free one); who does hears a word that only we know."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        place = socket.socket(family, socket.SOCK_STREAM)
        try:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((address, port))
        except OSError:
            place.close()
            return None
        place.listen(128)
        self._open.append(place)
        word = secrets.token_hex(8)
        threading.Thread(target=_answer_calls, args=(place, word), daemon=True).start()
        return {"address": address, "port": place.getsockname()[1], "word": word}


def _answer_calls(place: socket.socket, word: str) -> None:
    while True:
        caller, _ = place.accept()
        with contextlib.suppress(OSError), caller:
            caller.sendall(word.encode())


def call(peers: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, str]:
    """Call every peer at once; by ``name address port``: why it failed, or nothing."""
    if not peers:
        return {}
    with ThreadPoolExecutor(max_workers=min(64, len(peers))) as pool:
        answers = pool.map(lambda peer: _call(peer, seconds), peers)
        names = [f"{peer['name']} {peer['address']} {peer['port']}" for peer in peers]
        return dict(zip(names, answers, strict=True))


def _call(peer: Mapping[str, Any], seconds: float) -> str:
    try:
        with socket.create_connection((peer["address"], peer["port"]), timeout=seconds) as line:
            said = line.recv(64).decode(errors="replace")
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return "" if said == peer["word"] else "another machine or program answers there"


def _interfaces() -> dict[str, dict[str, Any]]:
    """By name: the addresses, and whether it is up."""
    found: dict[str, dict[str, Any]] = {}
    for _, name in socket.if_nameindex():
        flags = _flags(name)
        found[name] = {"addresses": _addresses(name), "is_up": bool(flags & _UP)}
    return found


def _flags(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/flags").read_text(encoding="ascii"), 16)
    except OSError:
        return _UP


def _addresses(name: str) -> list[str]:
    return [*_version_4(name), *_version_6(name)]


def _version_4(name: str) -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            request = struct.pack("256s", name.encode()[:15])
            answer = fcntl.ioctl(asking.fileno(), _GET_ADDRESS, request)
        except OSError:
            return []
    return [socket.inet_ntoa(answer[20:24])]


def _version_6(name: str) -> list[str]:
    """Those of global scope."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(f[0]))
        for f in fields
        if f[5] == name and f[3] == "00"
    ]


def _own_name() -> dict[str, Any]:
    """What this host's name means here: gloo takes the first address that it can bind."""
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return {"name": name, "addresses": [], "trouble": error.strerror or str(error)}
    return {
        "name": name,
        "addresses": list(dict.fromkeys(str(f[4][0]) for f in found)),
        "trouble": "",
    }


def _first_address() -> str | None:
    """Where DeepSpeed lets rank 0 be found: the first word of ``hostname -I``."""
    try:
        done = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _meeting_address(
    interfaces: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any], chosen: str | None
) -> str | None:
    """Where the other hosts' processes will call: the chosen interface, or the own name."""
    if chosen is not None:
        for name in chosen.split(","):
            if addresses := interfaces.get(name, {}).get("addresses"):
                return str(addresses[0])
        return None
    here = {address for facts in interfaces.values() for address in facts["addresses"]}
    return next((a for a in own["addresses"] if a in here), None)


def _port_trouble(port: int | None) -> str:
    if port is None:
        return ""
    try:
        require_free(port)
    except ResourceError as error:
        return str(error)
    return ""
