"""Two hosts on one machine: network namespaces joined by one cable, whose rate can be set."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ResourceError

INTERFACE = "eth0"
ADDRESSES = ("192.0.2.1", "192.0.2.2")
"""Of a network kept for examples; they are seen inside the namespaces alone."""
_BURST = "128kb"
_QUEUE = "8mb"
_TOOLS = ("ip", "tc")


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace.

    Attributes:
        name: of the namespace.
        address: what the other host reaches it by.
    """

    name: str
    address: str

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        """A process in this host; what it says goes to the file."""
        inside = ["ip", "netns", "exec", self.name, *command]
        with log.open("wb") as file:
            return subprocess.Popen(
                inside, env=dict(environment), stdout=file, stderr=subprocess.STDOUT
            )


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, gone again afterwards; names hold this process's number.

    Raises:
        ResourceError: no root, ``ip`` or ``tc``, or a kernel that allows no namespaces.
    """
    require_tools()
    first, second = (f"onward-{os.getpid()}-{letter}" for letter in "ab")
    with ExitStack() as ending:
        for name in (first, second):
            _ip("netns", "add", name)
            ending.callback(_forget, name)
        # A cable that is made inside the namespaces goes when they go.
        _ip("-n", first, "link", "add", INTERFACE, "type", "veth",
            "peer", "name", INTERFACE, "netns", second)  # fmt: skip
        for name, address in zip((first, second), ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield Host(first, ADDRESSES[0]), Host(second, ADDRESSES[1])


def require_tools() -> None:
    """ResourceError if this process cannot make hosts."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        msg = f"two hosts: no {' and no '.join(missing)} here; install iproute2"
        raise ResourceError(msg)
    if os.geteuid() != 0:
        msg = "two hosts: network namespaces need root; run it as root, or in a container as root"
        raise ResourceError(msg)


def shape(rate: str | None) -> None:
    """Limit what leaves the host that this process is in, such as ``400mbit``; None: no limit.

    A token bucket in the interface: packets wait in a queue that is long enough to drop none.
    """
    if rate is None:
        # There is nothing to remove the first time.
        subprocess.run(
            ["tc", "qdisc", "del", "dev", INTERFACE, "root"], capture_output=True, check=False
        )
        return
    _run(["tc", "qdisc", "replace", "dev", INTERFACE, "root", "tbf", "rate", rate,
          "burst", _BURST, "limit", _QUEUE])  # fmt: skip


def sent_bytes() -> int:
    """What has left the host that this process is in, with all headers, since it was made.

    From ``/proc/net/dev``, which shows the reader's own namespace.
    """
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == INTERFACE:
            return int(numbers.split()[8])
    msg = f"two hosts: this process has no {INTERFACE}; it is in none of the hosts"
    raise ResourceError(msg)


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"two hosts: '{' '.join(command)}' failed: {done.stderr.strip()}"
        raise ResourceError(msg)


def _forget(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
