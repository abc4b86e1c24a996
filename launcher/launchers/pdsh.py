"""pdsh: one ssh a host, and deepspeed's own launch.py there starts the processes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from launcher.filters import format_filter
from launcher.hosts import SSH, Host
from launcher.launchers.base import require_programs

if TYPE_CHECKING:
    from launcher.command import Launch


class Pdsh:
    """Takes any hosts with any slots."""

    NAME: ClassVar[str] = "pdsh"
    SETS_RANKS: ClassVar[bool] = True

    def require(self, environment: Mapping[str, str]) -> None:
        require_programs(
            ("pdsh", "ssh"), environment, self.NAME, "Debian: apt install pdsh openssh-client"
        )

    def needs_ssh(self, environment: Mapping[str, str]) -> bool:
        del environment
        return True

    def arranged(self, hosts: Sequence[Host], environment: Mapping[str, str]) -> tuple[Host, ...]:
        del environment
        return tuple(hosts)

    def placement(self, launch: "Launch", environment: Mapping[str, str]) -> list[str]:
        del environment
        chosen = format_filter(launch.hosts)
        return [
            # A single host would else be taken for this machine.
            "--force_multi",
            *([f"--include={chosen}"] if chosen else []),
            *([f"--launcher_args={launch.launcher_args}"] if launch.launcher_args else []),
        ]

    def program(self, launch: "Launch") -> list[str]:
        return ["--module", launch.module]

    def reach(self, host: Host, environment: Mapping[str, str]) -> list[str]:
        del environment
        return [*SSH, host.name]
