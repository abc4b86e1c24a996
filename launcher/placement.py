"""Where launched stages run, as the command line says it: hosts, launcher, what is passed on."""

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import RecipeError
from configs.stage import Runs
from configs.yaml_source import nearest
from launcher import environment, exports
from launcher.command import Launch
from launcher.filters import chosen
from launcher.hosts import Host, is_local, one_a_host, read_hostfile
from launcher.job import GRACE_SECONDS
from launcher.launchers import LAUNCHERS
from launcher.launchers.slurm import allocation
from launcher.secrecy import mask, mask_word


@dataclass(frozen=True, slots=True)
class Placement:
    """Where launched stages run.

    Attributes:
        processes: on this machine, or on each host of a Slurm allocation; None: one a GPU, or two
            without.
        hostfile: the machines instead.
        port: rank 0 waits for the others there; None: a free one.
        module: what each rank runs.
        grace: seconds that ranks have to save their state when they are to stop.
        runs: ``hosts``: one process on each machine, whatever its slots, and none needs torch.
        environment: the user's. What this program sets in its own is not for other hosts: they
            find out themselves what they have.
        launcher: pdsh, openmpi or slurm; empty: pdsh if a host is another machine.
        launcher_args: further words for it.
        include: the hosts and slots of the hostfile to use, ``NAME[:SLOT,...][@...]``.
        exclude: those not to use.
        master_addr: rank 0's address; empty: found out.
        passed: environment variables to pass on to other hosts besides the usual ones.
        left_out: names of the hosts that nothing is to run on.
    """

    processes: int | None = None
    hostfile: Path | None = None
    port: int | None = None
    module: str = "launcher.worker"
    grace: float = GRACE_SECONDS
    runs: Runs = "ranks"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    launcher: str = ""
    launcher_args: str = ""
    include: str = ""
    exclude: str = ""
    master_addr: str = ""
    passed: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()

    def hosts(self) -> tuple[Host, ...]:
        """The machines as they are numbered, none if it is this one without a hostfile.

        RecipeError lists bad lines; LaunchError if a launcher cannot run here.
        """
        self._refuse_contradictions()
        found = tuple(host for host in self._given_hosts() if host.name not in self.left_out)
        if self.launcher:
            LAUNCHERS[self.launcher].require(self.environment)
            found = LAUNCHERS[self.launcher].arranged(found, self.environment)
        return one_a_host(found) if self.runs == "hosts" else found

    def _given_hosts(self) -> tuple[Host, ...]:
        if self.hostfile:
            return chosen(read_hostfile(self.hostfile), self.include, self.exclude)
        if self.launcher == "slurm":
            LAUNCHERS["slurm"].require(self.environment)
            found = allocation(self.environment, self.processes)
            return chosen(found, self.include, self.exclude)
        return ()

    def _refuse_contradictions(self) -> None:
        if self.launcher and self.launcher not in LAUNCHERS:
            msg = f"--launcher {self.launcher}: unknown; {nearest(self.launcher, LAUNCHERS)}"
            raise RecipeError(msg)
        if self.hostfile and self.processes:
            msg = "--processes and --hostfile: give one; a hostfile's slots are its processes"
            raise RecipeError(msg)
        if self.hostfile or self.launcher == "slurm":
            return
        only_with_hosts = {
            "--launcher": self.launcher,
            "--include": self.include,
            "--exclude": self.exclude,
            "--master-addr": self.master_addr,
        }
        for option, value in only_with_hosts.items():
            if value:
                msg = (
                    f"{option} {value}: needs --hostfile; on this machine alone, --processes and "
                    "CUDA_VISIBLE_DEVICES say where"
                )
                raise RecipeError(msg)

    def chosen_launcher(self) -> str:
        """The one asked for; else pdsh, or none if all is on this machine."""
        return self.launcher or ("" if is_local(self.hosts()) else "pdsh")

    def require(self) -> None:
        """LaunchError for what is missing on this machine to start it; RecipeError, too."""
        launcher = self.chosen_launcher()
        if launcher:
            LAUNCHERS[launcher].require(self.environment)
            _require_words(self.launcher_args)
            self.exports()
        elif self.launcher_args:
            msg = (
                f"--launcher-args {self.launcher_args}: no launcher is needed on this machine "
                "alone; leave it out, or give --launcher"
            )
            raise RecipeError(msg)
        else:
            self._require_set()

    def _require_set(self) -> None:
        for name in self.passed:
            if name not in self.environment:
                msg = f"--env {name}: not set here; set it, or leave the option out"
                raise RecipeError(msg)

    def entered_by_ssh(self) -> tuple[Host, ...]:
        """The hosts that ssh must enter without a question."""
        launcher = self.chosen_launcher()
        if not launcher or not LAUNCHERS[launcher].needs_ssh(self.environment):
            return ()
        return self.hosts()

    def reach(self, hosts: Sequence[Host]) -> list[str]:
        """How to run a command on the first host; nothing if none is asked."""
        launcher = self.chosen_launcher()
        return LAUNCHERS[launcher].reach(hosts[0], self.environment) if launcher else []

    def without(self, names: Iterable[str]) -> "Placement":
        """The same, without these hosts."""
        return dataclasses.replace(self, left_out=frozenset(names))

    def for_stage(self, runs: Runs) -> "Placement":
        """The same, for a stage that runs so."""
        return dataclasses.replace(self, runs=runs)

    def exports(self) -> dict[str, str]:
        """Environment variables for other hosts; RecipeError for what looks secret."""
        files = exports.own_files(self.environment)
        return exports.exports(self.environment, files, self.passed)

    def world(self) -> int:
        """How many ranks a launch has."""
        here = self.processes or environment.default_processes()
        return sum(host.slots for host in self.hosts()) or here

    def threads(self) -> int | None:
        """Of each process; None if every host shares out its own cores."""
        if not self.chosen_launcher():
            given = environment.threads(self.environment)
            return given or environment.shared_cores(self.world(), environment.cores())
        return environment.threads(self.exports())


def _require_words(given: str) -> None:
    """RecipeError for what no shell could split, and for what others must not read."""
    try:
        words = shlex.split(given)
    except ValueError as error:
        msg = f"--launcher-args {mask(given)}: {error}; expected words as a shell would split them"
        raise RecipeError(msg) from None
    for word in words:
        if mask_word(word) != word:
            msg = (
                f"--launcher-args {mask_word(word)}: looks secret, and would stand on a command "
                "line that others can read. Keep secrets in files that each host has"
            )
            raise RecipeError(msg)


def remote_environments(
    launch: Launch, given: Mapping[str, str], listed: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """What is passed on to the hosts of a launch, and what deepspeed's runner itself gets."""
    path = given.get("PYTHONPATH", "").split(os.pathsep)
    python = {
        "PYTHONPATH": os.pathsep.join(
            dict.fromkeys([str(environment.PROJECT), *filter(None, path)])
        ),
        "PYTHONSAFEPATH": "1",
    }
    passed = {**listed, **python}
    if not LAUNCHERS[launch.launcher].SETS_RANKS:
        passed |= {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}
    own = exports.own_environment(given)
    return passed, {**own, **python, "DS_ENV_FILE": str(launch.folder / "environment")}
