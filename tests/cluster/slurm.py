"""Slurm on the hosts of a cluster: its controller on the first, its daemon on every one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ResourceError
from tests.cluster.hosts import Cluster, ClusterHost, wait_until
from tests.cluster.switch import SYSTEM_PATH

_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
_CONFIG = """ClusterName=test
SlurmctldHost={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=5
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n-spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=10
MinJobAge=300
InactiveLimit=0
JobRequeue=1
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""
# `cred_expire`: how many seconds a requeued job must wait, 120 unless told. To set its start time
# to now instead is to race with the credentials of its first run: it may fail without a word.
# Its hosts have this machine's cores and memory; what they say of them is not looked at.
_NODE = "NodeName={name} NodeAddr={address} CPUs=1 RealMemory=100 State=UNKNOWN\n"
_SETTINGS = Path("/etc/slurm")
"""Where the programs look."""
_IDLE = 30.0
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}
"""States of a job that is over."""


@dataclass
class Slurm:
    """A cluster whose hosts are Slurm's."""

    cluster: Cluster
    folder: Path

    def do(self, *command: str) -> str:
        """Run one of Slurm's commands on the first host; its stdout."""
        done = self.cluster.hosts[0].run(list(command), cwd=self.folder)
        if done.returncode != 0:
            msg = f"{' '.join(command)}: {done.stderr.strip()}"
            raise ResourceError(msg)
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, **environment: str) -> str:
        """The number of the job."""
        first = self.cluster.hosts[0]
        command = ["sbatch", "--parsable", *options, str(script)]
        done = first.run(command, cwd=script.parent, **environment)
        if done.returncode != 0:
            msg = f"sbatch: {done.stderr.strip()}"
            raise ResourceError(msg)
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says, such as JobState, Restarts and ExitCode."""
        words = self.do("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def state(self, job: str) -> str:
        """Such as PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT."""
        return self.facts(job)["JobState"]

    def wait(self, job: str, states: set[str], seconds: float) -> str:
        """Until it is in one of these states; which. TimeoutError."""
        wait_until(lambda: self.state(job) in states, seconds, f"job {job} in {states}")
        return self.state(job)

    def begin(self, host: ClusterHost) -> None:
        """Start its daemons on a host, again after it was off."""
        if host is self.cluster.hosts[0]:
            _daemon(host, ["slurmctld"])
        _daemon(host, ["slurmd", "-N", host.name])


def _daemon(host: ClusterHost, command: list[str]) -> None:
    done = host.run(command, timeout=20)
    if done.returncode != 0:
        msg = f"{command[0]} on {host.name}: {done.stderr.strip() or done.stdout.strip()}"
        raise ResourceError(msg)


def _munge(host: ClusterHost, folder: Path) -> None:
    host.do("mkdir", "-p", "/run/munge")
    files = ("key-file", "pid-file", "log-file", "seed-file")
    places = (folder / "munge.key", "/run/munge/pid", "/run/munge/log", "/run/munge/seed")
    options = [f"--{name}={place}" for name, place in zip(files, places, strict=True)]
    _daemon(host, ["munged", "--force", "--socket=/run/munge/munge.socket.2", *options])


@contextmanager
def slurm(cluster: Cluster) -> Iterator[Slurm]:
    """Start Slurm on all hosts; it ends with them.

    Raises:
        ResourceError: a program of it is missing, or a daemon does not start.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    if missing:
        msg = f"Slurm's {', '.join(missing)} missing (Debian: apt install slurm-wlm munge)"
        raise ResourceError(msg)
    made = Slurm(cluster, cluster.folder / "slurm")
    _configure(made)
    _SETTINGS.mkdir(exist_ok=True)
    for host in cluster.hosts:
        _join(made, host)
        host.on_boot = lambda host: _join(made, host)
    idle = len(cluster.hosts)
    count = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    wait_until(lambda: made.do(*count) == str(idle), _IDLE, "all of Slurm's nodes idle")
    yield made


def _join(made: Slurm, host: ClusterHost) -> None:
    host.overlay(_SETTINGS, made.folder / "settings")
    _munge(host, made.folder)
    made.begin(host)


def _configure(made: Slurm) -> None:
    hosts = made.cluster.hosts
    for path in ("settings", "state", *(f"{host.name}-spool" for host in hosts)):
        (made.folder / path).mkdir(parents=True)
    nodes = "".join(_NODE.format(name=host.name, address=host.address) for host in hosts)
    text = _CONFIG.format(first=hosts[0].name, folder=made.folder, nodes=nodes)
    (made.folder / "settings" / "slurm.conf").write_text(text)
    key = made.folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
