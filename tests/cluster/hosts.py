"""Several hosts on one machine: each with its own network, name, processes and memory, and sshd.

A host is a set of Linux namespaces. Its files are those of this machine, as if all were shared,
but for ``/dev/shm``, ``/run`` and the cluster's folder ``private``. The hosts' cables meet in a
bridge; nothing leads out of it. Clusters know nothing of each other and may use the same names and
addresses at the same time. Nothing outlives the process that made it, however that one ends.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from configs.errors import ResourceError
from tests.cluster.switch import SYSTEM_PATH, Switch, bare_environment, children, do, let_go

ROOT = Path(__file__).parents[2]
_FIRST_PROCESS = Path(__file__).with_name("host.sh")
_TOOLS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
}
_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
_SSH = """Host *
    IdentityFile {folder}/key
    GlobalKnownHostsFile {folder}/known_hosts
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""
_SSHD = """HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile /run/sshd.pid
SetEnv PYTHONPATH={code}
# Launchers open one connection a process, and tests many at a time.
MaxStartups 100
"""


class Started(subprocess.Popen[str]):
    """A command on a host; signals go to it, not to the process that entered the host for it."""

    def send_signal(self, sig: int) -> None:
        """Also ``terminate`` and ``kill``; nothing if it has ended."""
        if self.poll() is None:
            for pid in children(self.pid) or [self.pid]:
                os.kill(pid, sig)


@dataclass
class ClusterHost:
    """One host; ``address`` is its IPv4 address on the cluster's network."""

    name: str
    address: str
    cluster: "Cluster"
    on_boot: Callable[["ClusterHost"], None] | None = None
    """What starts with it, beside sshd."""
    _holder: subprocess.Popen[str] | None = None
    _commands: list[Started] = field(default_factory=list)

    @property
    def _boot_log(self) -> Path:
        return self.cluster.folder / self.name / "boot.log"

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._holder is not None

    def boot(self) -> None:
        """Power on, with a mended cable and nothing of what ran or was hidden before."""
        if self.is_on:
            return
        unshare = ["unshare", *_NAMESPACES, "--mount-proc", "--fork", "--kill-child"]
        with self._boot_log.open("w") as log:
            self._holder = subprocess.Popen(
                [*unshare, "bash", str(_FIRST_PROCESS), self.name, str(self.cluster.folder)],
                env=bare_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._await("made")
        self.cluster.switch.plug(self.name, self.address, self.pid)
        self._to_holder("plugged")
        self._await("ready")
        self._take_operators()
        if self.on_boot is not None:
            self.on_boot(self)

    def _take_operators(self) -> None:
        """A copy of DeepSpeed's compiled operators, as if on a disk of its own.

        A process of another host that holds torch's lock there cannot be told from a dead one.
        """
        built = Path(self.cluster.environment()["ONWARD_CACHE"]) / "extensions"
        if built.is_dir():
            self.do("cp", "-a", str(built), "/run/extensions")
            self.do("find", "/run/extensions", "-name", "lock", "-delete")
            self.do("mount", "--bind", "/run/extensions", str(built))

    def power_off(self) -> None:
        """Every process of it is gone at once, and nobody is told: the cable falls silent first."""
        if self._holder is None:
            return
        self.cut()
        self._holder.kill()
        let_go(self._holder)
        self._holder = None
        for command in self._commands:
            command.wait()
        self._commands.clear()

    def run(
        self,
        command: Sequence[str],
        timeout: float = 120.0,
        *,
        cwd: Path | None = None,
        **more_environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in seconds; subprocess.TimeoutExpired kills it."""
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            process = self._enter(command, out, err, cwd, more_environment)
            try:
                process.wait(timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())

    def start(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        **more_environment: str,
    ) -> Started:
        """Start a command; its stdout and stderr go to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            process = self._enter(command, out, subprocess.STDOUT, cwd, more_environment)
        self._commands.append(process)
        return process

    def _enter(
        self,
        command: Sequence[str],
        out: IO[str],
        err: IO[str] | int,
        cwd: Path | None,
        more: dict[str, str],
    ) -> Started:
        return Started(
            [*self._inside(), "env", f"--chdir={cwd or self.cluster.folder}", *command],
            env=self.cluster.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *_NAMESPACES, "--"]

    def do(self, *command: str) -> str:
        """Run one of the system's own commands on it; its stdout, ResourceError if it fails."""
        return do([*self._inside(), *command])

    @property
    def pid(self) -> int:
        """Its first process, as this machine counts."""
        if self._holder is None:
            msg = f"{self.name} is off"
            raise ResourceError(msg)
        return children(self._holder.pid)[0]

    def cut(self) -> None:
        """Pull its cable: nothing comes or goes, and no connection is closed."""
        self.cluster.switch.set(self.name, "down")

    def mend(self) -> None:
        """Plug its cable in again."""
        self.cluster.switch.set(self.name, "up")

    def block(self, port: int) -> None:
        """Drop, as a firewall does, what other hosts send to this TCP port of it."""
        self._rule("add", f"ipproto tcp dport {port}")

    def unblock(self, port: int) -> None:
        """Let it in again."""
        self._rule("del", f"ipproto tcp dport {port}")

    def ignore(self, other: "ClusterHost") -> None:
        """Drop everything that comes from another host."""
        self._rule("add", f"from {other.address}")

    def heed(self, other: "ClusterHost") -> None:
        """Let it in again."""
        self._rule("del", f"from {other.address}")

    def _rule(self, verb: str, what: str) -> None:
        self.do("ip", "rule", verb, *f"pref 50 iif eth0 {what} blackhole".split())

    def slow(self, rate: str) -> None:
        """Limit what it sends, such as ``100mbit``."""
        limit = f"tbf rate {rate} burst 256kb latency 100ms"
        self.do("tc", "qdisc", "replace", "dev", "eth0", "root", *limit.split())

    def hide(self, path: Path) -> None:
        """Lay an empty folder of its own over this one: a file system that is not shared."""
        self.do("mount", "-t", "tmpfs", "tmpfs", str(path))

    def overlay(self, path: Path, with_path: Path) -> None:
        """It has another file, or folder, at this path than the other hosts."""
        self.do("mount", "--bind", str(with_path), str(path))

    def bare(self, path: Path) -> None:
        """Take away what was laid over this path last."""
        self.do("umount", str(path))

    def _to_holder(self, line: str) -> None:
        if self._holder is not None and self._holder.stdin is not None:
            self._holder.stdin.write(f"{line}\n")
            self._holder.stdin.flush()

    def _await(self, word: str) -> None:
        said = ""
        if self._holder is not None and self._holder.stdout is not None:
            said = self._holder.stdout.readline().strip()
        if said != word:
            msg = f"{self.name} did not come up: {self._boot_log.read_text().strip() or said}"
            raise ResourceError(msg)


@dataclass
class Cluster:
    """Hosts ``node-1``, ``node-2``, ... and the folder their files lie in."""

    folder: Path
    hosts: list[ClusterHost] = field(default_factory=list)
    switch: Switch = field(default_factory=Switch)

    def hostfile(self, slots: int = 1, hosts: Sequence[ClusterHost] | None = None) -> Path:
        """A hostfile of these hosts, or of all; each call writes a new one."""
        named = self.hosts if hosts is None else hosts
        number = len(list(self.folder.glob("hostfile-*"))) + 1
        path = self.folder / f"hostfile-{number}"
        path.write_text("".join(f"{host.name} slots={slots}\n" for host in named))
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """What commands on hosts start with."""
        made = {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "PDSH_RCMD_TYPE": "ssh",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ONWARD_CACHE": os.environ.get("ONWARD_CACHE", str(ROOT / ".cache")),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if "TORCH_EXTENSIONS_DIR" in os.environ:
            made["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]
        return bare_environment() | made | more

    @property
    def private(self) -> Path:
        """A folder in which each host has its own files, in its memory."""
        return self.folder / "private"

    def write_keys(self) -> None:
        """By which all hosts enter each other, and know each other."""
        for name in ("key", "host_key"):
            do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)])
        key = (self.folder / "host_key.pub").read_text().strip()
        lines = [f"{host.name},{host.address} {key}\n" for host in self.hosts]
        (self.folder / "known_hosts").write_text("".join(lines))
        (self.folder / "ssh_config").write_text(_SSH.format(folder=self.folder))
        (self.folder / "sshd_config").write_text(_SSHD.format(folder=self.folder, code=ROOT))

    def write_names(self) -> None:
        """What every host's /etc/hosts holds, and a folder of each for its logs."""
        names = [f"{host.address} {host.name}\n" for host in self.hosts]
        (self.folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
        for host in self.hosts:
            (self.folder / host.name).mkdir()
            (self.folder / host.name / "address").write_text(host.address)
        self.private.mkdir()


@contextmanager
def cluster(count: int, folder: Path) -> Iterator[Cluster]:
    """Hosts ``node-1`` to ``node-<count>``, with their files in ``folder``.

    Each may enter each by ssh without a question, by name and by address. At the end every process
    of theirs is gone.

    Raises:
        ResourceError: this is not root, or a tool is missing, or the kernel has no such thing.
    """
    _require_means()
    if folder.exists() and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        made = Cluster(folder.resolve())
        stack.callback(made.switch.close)
        for number in range(1, count + 1):
            made.hosts.append(ClusterHost(f"node-{number}", f"10.77.0.{number}", made))
        made.write_names()
        made.write_keys()
        for host in made.hosts:
            stack.callback(host.power_off)
            host.boot()
        yield made


def _require_means() -> None:
    if os.geteuid() != 0:
        msg = "hosts of one machine are made of namespaces, which only root may make"
        raise ResourceError(msg)
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    if missing:
        packages = " ".join(sorted({_TOOLS[tool] for tool in missing}))
        msg = f"hosts of one machine need {', '.join(missing)} (Debian: apt install {packages})"
        raise ResourceError(msg)


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    """TimeoutError that says ``what`` did not come true in time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            msg = f"not within {seconds:g} s: {what}"
            raise TimeoutError(msg)
        time.sleep(0.1)
