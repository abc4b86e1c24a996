"""What a launcher must tell before deepspeed's runner is started with it."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from configs.errors import LaunchError
from launcher.hosts import Host

if TYPE_CHECKING:
    from launcher.command import Launch


class Launcher(Protocol):
    """One way to other hosts.

    Attributes:
        NAME: as deepspeed's ``--launcher`` has it.
        SETS_RANKS: whether its processes find RANK and MASTER_ADDR in their environment.
    """

    NAME: ClassVar[str]
    SETS_RANKS: ClassVar[bool]

    def require(self, environment: Mapping[str, str]) -> None:
        """LaunchError that names what is not installed, or not allowed, on this machine."""

    def needs_ssh(self, environment: Mapping[str, str]) -> bool:
        """Whether it enters the hosts by ssh."""

    def arranged(self, hosts: Sequence[Host], environment: Mapping[str, str]) -> tuple[Host, ...]:
        """The hosts in the order in which it numbers their processes.

        RecipeError for slots or hosts that it cannot place processes on.
        """

    def placement(self, launch: "Launch", environment: Mapping[str, str]) -> list[str]:
        """Arguments of deepspeed's runner that say where processes run."""

    def program(self, launch: "Launch") -> list[str]:
        """The worker as the runner takes it, before the worker's own arguments."""

    def reach(self, host: Host, environment: Mapping[str, str]) -> list[str]:
        """How to run a command on a host: the words before it."""


def require_programs(
    names: Iterable[str], environment: Mapping[str, str], launcher: str, remedy: str
) -> None:
    """LaunchError that lists what is not on PATH."""
    path = environment.get("PATH")
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        msg = f"--launcher {launcher} needs {' and '.join(missing)} on this machine ({remedy})"
        raise LaunchError(msg)
