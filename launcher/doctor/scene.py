"""All that was found out about the hosts; what the checks judge."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.doctor.finding import Finding
from launcher.hosts import Host

Facts = Mapping[str, Any]
"""What one host's probe answered, by section: ``machine``, ``software``, ``network``, ..."""
Launcher = Literal["pdsh", "openmpi", "slurm"]


@dataclass(frozen=True, slots=True)
class Unreached:
    """Why a host did not answer, or stopped to.

    Attributes:
        asked: the section it was asked for; ``start`` if it answered nothing at all.
        said: the last lines on its standard error.
        code: how ssh ended; None if it was given up.
    """

    asked: str
    said: str
    code: int | None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a recipe's stages will take, as far as it can be told.

    Attributes:
        disk: bytes of checkpoints and exports in the run folder.
        checkpoint: bytes of the largest one.
        trouble: why the recipe cannot run on so many ranks; empty if it can.
    """

    disk: int = 0
    checkpoint: int = 0
    trouble: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Hosts and what is known of each.

    Attributes:
        hosts: in the hostfile's order; without one, this machine.
        facts: by host; one that did not answer is missing, or lacks sections.
        unreached: why, by host.
        environment: what a launch hands to every process.
        launcher: starts the processes on the hosts.
        programs: the programs of interest that this machine has.
        folder: where the run's files go.
        is_folder_given: else it is the current one, and says little of the run.
        unwritable: why this machine cannot write there; empty if it can.
        needs: of the recipe, if one was given.
        port: rank 0's, if it was chosen.
        address: rank 0's, if it was chosen.
        ways: how each host is reached, by name; none where all is on this machine.
        python: what starts a rank, everywhere.
        collectives: what the timed sums came to; empty if none were tried.
    """

    hosts: Sequence[Host]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    unreached: Mapping[str, Unreached] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Launcher = "pdsh"
    programs: frozenset[str] = frozenset()
    folder: Path = Path()
    is_folder_given: bool = False
    unwritable: str = ""
    needs: Needs | None = None
    port: int | None = None
    address: str = ""
    ways: Mapping[str, Sequence[str]] = field(default_factory=dict)
    python: str = ""
    collectives: Facts = field(default_factory=dict)

    @property
    def is_several(self) -> bool:
        """Whether processes of several machines have to meet."""
        return len(self.hosts) > 1

    @property
    def world(self) -> int:
        """How many ranks."""
        return sum(host.slots for host in self.hosts)

    def told(self, section: str) -> Iterator[tuple[Host, Facts]]:
        """The hosts that answered for a section, with the answer."""
        for host in self.hosts:
            answer = self.facts.get(host.name, {}).get(section)
            if answer is not None:
                yield host, answer

    def chosen_interfaces(self) -> dict[str, str]:
        """The variables that name network interfaces, as far as they are set."""
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        return {name: self.environment[name] for name in names if self.environment.get(name)}


@dataclass(frozen=True, slots=True)
class Check:
    """A name, and what judges."""

    name: str
    judge: Callable[[Scene], Iterator[Finding]]
