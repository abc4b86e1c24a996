"""The place where the cables of a cluster's hosts meet, and how the system's tools are run."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.errors import ResourceError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def bare_environment() -> dict[str, str]:
    """Little of this machine's, as a login has."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER") if name in os.environ}
    return {"PATH": SYSTEM_PATH, **kept}


def do(command: Sequence[str]) -> str:
    """Run one of the system's own commands; its stdout, ResourceError if it fails."""
    done = subprocess.run(
        command,
        env=bare_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"{' '.join(command)}: {done.stderr.strip()}"
        raise ResourceError(msg)
    return done.stdout


def children(pid: int) -> list[int]:
    """The processes that one has started itself."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def let_go(process: subprocess.Popen[str]) -> None:
    """Of a process that ends: wait for it, and close its pipes."""
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Switch:
    """A bridge in a network of its own, which is there as long as its one process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; read -r _"],
            env=bare_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if self._process.stdout is not None:
            self._process.stdout.readline()
        self.do("ip", "link", "add", "name", "bridge", "type", "bridge")
        self.do("ip", "link", "set", "bridge", "up")

    def do(self, *command: str) -> str:
        """Run a command in its network."""
        return do(["nsenter", f"--target={self._process.pid}", "--net", "--", *command])

    def plug(self, name: str, address: str, pid: int) -> None:
        """A cable to the network of a process; its end there is ``eth0``."""
        self._unplug(name)
        # A card keeps its address: other hosts have it in their tables still.
        card = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        cable = ["ip", "link", "add", "name", name, "type", "veth", "peer", "name", "eth0"]
        self.do(*cable, "address", card, "netns", str(pid))
        self.do("ip", "link", "set", name, "master", "bridge", "up")

    def _unplug(self, name: str) -> None:
        """Of a host that has just lost its power: its cable may be there yet, and going."""
        if self._has(name):
            try:
                self.do("ip", "link", "del", name)
            except ResourceError:
                # Gone between the look and the command.
                if self._has(name):
                    raise

    def _has(self, name: str) -> bool:
        return f" {name}@" in self.do("ip", "-oneline", "link")

    def set(self, name: str, state: str) -> None:
        """A cable ``up`` or ``down``: nothing comes or goes, and no connection is closed."""
        self.do("ip", "link", "set", name, state)

    def close(self) -> None:
        """All cables are gone."""
        self._process.kill()
        let_go(self._process)
