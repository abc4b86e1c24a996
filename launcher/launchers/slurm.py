"""Slurm's srun, inside an allocation: starts the workers as a step of the job."""

import functools
import importlib.util
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from configs.errors import LaunchError, RecipeError
from configs.yaml_source import nearest
from launcher.hosts import Host
from launcher.launchers.base import require_programs

if TYPE_CHECKING:
    from launcher.command import Launch

_SECONDS = 30.0


class Slurm:
    """Takes hosts of its allocation with equally many slots each."""

    NAME: ClassVar[str] = "slurm"
    SETS_RANKS: ClassVar[bool] = False

    def require(self, environment: Mapping[str, str]) -> None:
        require_programs(
            ("sinfo", "srun", "scontrol"),
            environment,
            self.NAME,
            "run it where Slurm's commands are",
        )
        if not in_allocation(environment):
            msg = (
                "--launcher slurm runs inside an allocation, and SLURM_JOB_NODELIST is not set "
                "here; make a batch file with `onward launch-script`, or get one with `salloc`"
            )
            raise LaunchError(msg)

    def needs_ssh(self, environment: Mapping[str, str]) -> bool:
        del environment
        return False

    def arranged(self, hosts: Sequence[Host], environment: Mapping[str, str]) -> tuple[Host, ...]:
        """In the allocation's order: srun numbers tasks so, whatever order it is given."""
        slots = {host.name: host.slots for host in hosts}
        if len(set(slots.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in slots.items())
            msg = f"--launcher slurm needs equally many slots on every host; given: {counts}"
            raise RecipeError(msg)
        for host in hosts:
            if not host.has_first_slots:
                msg = (
                    f"host {host.name}: srun counts tasks and cannot choose the slots "
                    f"{', '.join(map(str, host.ids))}; leave out whole hosts, or the last slots "
                    "of every host"
                )
                raise RecipeError(msg)
        allocated = allocated_hosts(environment)
        for name in slots:
            if name not in allocated:
                msg = f"host {name} is not in this allocation; {nearest(name, allocated)}"
                raise RecipeError(msg)
        return tuple(Host(name, slots[name]) for name in allocated if name in slots)

    def placement(self, launch: "Launch", environment: Mapping[str, str]) -> list[str]:
        own = [
            f"--nodes={len(launch.hosts)}",
            f"--ntasks-per-node={launch.hosts[0].slots}",
            f"--nodelist={','.join(host.name for host in launch.hosts)}",
            "--distribution=block",
            # One that dies would else leave the others waiting for it.
            "--kill-on-bad-exit=1",
        ]
        if count := environment.get("SLURM_CPUS_PER_TASK"):
            # Since Slurm 22.05 srun does not take it over from the job.
            own.append(f"--cpus-per-task={count}")
        words = " ".join([*own, *filter(None, [launch.launcher_args])])
        return ["--force_multi", f"--launcher_args={words}"]

    def program(self, launch: "Launch") -> list[str]:
        """The file: deepspeed's runner leaves --module out of srun's command."""
        found = importlib.util.find_spec(launch.module)
        if found is None or found.origin is None:
            msg = f"{launch.module}: no such module"
            raise LaunchError(msg)
        return [found.origin]

    def reach(self, host: Host, environment: Mapping[str, str]) -> list[str]:
        del environment
        return step_on(host)


def in_allocation(environment: Mapping[str, str]) -> bool:
    """Whether this process belongs to a Slurm job."""
    return bool(environment.get("SLURM_JOB_NODELIST"))


def step_on(host: Host) -> list[str]:
    """A step of one task on one host, beside whatever else the job does there."""
    return ["srun", "--nodes=1", "--ntasks=1", "--overlap", f"--nodelist={host.name}"]


def allocated_hosts(environment: Mapping[str, str]) -> list[str]:
    """The names of the allocation's hosts, in Slurm's order; LaunchError if it cannot tell."""
    names = ("PATH", "LD_LIBRARY_PATH", "SLURM_CONF")
    needed = tuple((name, environment[name]) for name in names if name in environment)
    return list(_hostnames(environment["SLURM_JOB_NODELIST"], needed))


@functools.lru_cache
def _hostnames(listed: str, environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", listed],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip()
        msg = f"scontrol show hostnames {listed}: {said}"
        raise LaunchError(msg) from None
    return tuple(done.stdout.split())


def allocation(environment: Mapping[str, str], processes: int | None) -> tuple[Host, ...]:
    """The allocation as hosts.

    ``processes`` a host, or what the job says: tasks a node, else GPUs a node. RecipeError if it
    says neither.
    """
    if processes is None:
        for name in ("SLURM_NTASKS_PER_NODE", "SLURM_GPUS_ON_NODE"):
            given = environment.get(name, "")
            if given.isdecimal() and int(given):
                processes = int(given)
                break
        else:
            msg = (
                "how many processes on each host? The job was given neither --ntasks-per-node nor "
                "GPUs; give --processes"
            )
            raise RecipeError(msg)
    return tuple(Host(name, processes) for name in allocated_hosts(environment))
