"""Open MPI's mpirun: starts the workers themselves, and numbers them in variables of its own."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from configs.errors import LaunchError, RecipeError
from launcher.hosts import SSH, Host
from launcher.launchers.base import require_programs
from launcher.launchers.slurm import in_allocation, step_on

if TYPE_CHECKING:
    from launcher.command import Launch

_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")


class OpenMPI:
    """Takes the first slots of any hosts."""

    NAME: ClassVar[str] = "openmpi"
    SETS_RANKS: ClassVar[bool] = False

    def require(self, environment: Mapping[str, str]) -> None:
        require_programs(
            ("ompi_info", "mpirun"), environment, self.NAME, "Debian: apt install openmpi-bin"
        )
        if os.geteuid() == 0 and any(environment.get(name) != "1" for name in _ROOT):
            names = "=1 and ".join(_ROOT)
            msg = f"mpirun refuses to run as root; run as another user, or set {names}=1"
            raise LaunchError(msg)

    def needs_ssh(self, environment: Mapping[str, str]) -> bool:
        # Inside an allocation mpirun starts its daemons by srun.
        return not in_allocation(environment)

    def arranged(self, hosts: Sequence[Host], environment: Mapping[str, str]) -> tuple[Host, ...]:
        """This machine first, if it is among them: mpirun begins to count where it runs itself."""
        del environment
        for host in hosts:
            if not host.has_first_slots:
                msg = (
                    f"host {host.name}: mpirun counts slots and cannot choose "
                    f"{', '.join(map(str, host.ids))}; leave out whole hosts or the last slots, "
                    "or use --launcher pdsh"
                )
                raise RecipeError(msg)
        return tuple(sorted(hosts, key=lambda host: not host.is_here))

    def placement(self, launch: "Launch", environment: Mapping[str, str]) -> list[str]:
        del environment
        # Bound to a core each, as is its default for two, workers could use no second thread.
        own = ["--bind-to", "none", "--map-by", "slot"]
        words = " ".join([*own, *filter(None, [launch.launcher_args])])
        return ["--force_multi", f"--launcher_args={words}"]

    def program(self, launch: "Launch") -> list[str]:
        return ["--module", launch.module]

    def reach(self, host: Host, environment: Mapping[str, str]) -> list[str]:
        return [*SSH, host.name] if self.needs_ssh(environment) else step_on(host)
