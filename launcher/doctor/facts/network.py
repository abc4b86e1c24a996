"""A host's addresses, a place where the other hosts can call it, and calls to theirs."""

import contextlib
import fcntl
import os
import secrets
import socket
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from configs.errors import LaunchError, ResourceError
from engine.rendezvous import INTERFACE, own_network
from launcher.ports import require_free

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_UP = 0x1


class Network:
    """Keeps its sockets open, so that others can call as long as this process lives."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def facts(self, master: str, port: int | None, *, is_first: bool) -> dict[str, Any]:
        """Interfaces, what the host's own name means to it, and where it can be called.

        Args:
            master: rank 0's address; every rank takes the interface that leads there.
            port: rank 0's, if it was chosen.
            is_first: whether rank 0 runs here.
        """
        way = _way(master)
        trouble = _port_trouble(port) if is_first else ""
        wanted = [(way["address"], 0)]
        if is_first:
            wanted += [(master, 0), (master, port or 0)][: 1 if trouble else 2]
        return {
            "interfaces": _interfaces(),
            "own_name": _own_name(),
            **way,
            "master": master if is_first else "",
            "listens": [
                found for at in dict.fromkeys(wanted) if at[0] and (found := self._listen(*at))
            ],
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
    """What this host's name means here."""
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


def way_to(target: str) -> dict[str, str]:
    """This host's own address on the way to another one; where none is known, its first one."""
    kept = os.environ.pop(INTERFACE, None)
    address = _way(target)["address"]
    if kept is not None:
        os.environ[INTERFACE] = kept
    return {"address": address or _first_address()}


def _way(master: str) -> dict[str, str]:
    """As a rank chooses its interface; ``trouble``: why it could not."""
    kept = dict(os.environ)
    os.environ["MASTER_ADDR"] = master
    try:
        return {**own_network(), "trouble": ""}
    except LaunchError as error:
        return {"interface": "", "address": "", "trouble": str(error)}
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _first_address() -> str:
    """The first word of ``hostname -I``."""
    try:
        done = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.split()), "")


def _port_trouble(port: int | None) -> str:
    if port is None:
        return ""
    try:
        require_free(port)
    except ResourceError as error:
        return str(error)
    return ""
