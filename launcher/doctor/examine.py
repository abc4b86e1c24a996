"""The whole examination: hostfile, hosts, one another, sums; then every check."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import LaunchError, RecipeError
from launcher import environment, ports
from launcher.doctor.checks import judge
from launcher.doctor.facts.software import PROGRAMS
from launcher.doctor.finding import Finding
from launcher.doctor.needs import Target, needs, target
from launcher.doctor.scene import Facts, Launcher, Scene
from launcher.doctor.trials import Meeting, collectives
from launcher.doctor.visit import Visit, place_for, trial_folder
from launcher.exports import exports, format_exports, own_files
from launcher.hosts import Host, is_local
from launcher.launchers import LAUNCHERS
from launcher.placement import Placement

_NOT_BEFORE = {"ssh", "answers", "one name a machine", "first host", "installed", "same versions",
               "same paths", "interfaces", "connections",
    "port"}  # fmt: skip
"""While one of these finds an error, processes would not meet."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be examined.

    Attributes:
        hostfile: None: this machine.
        run: a recipe, a run folder, or a folder; None: the current one.
        port: rank 0's; None: a run finds a free one.
        address: rank 0's; empty: the first host's own on the way to the second.
        include, exclude: as ``onward run`` has them.
        processes: on this machine, or on each host of a Slurm allocation, as ``onward run`` has it.
        sums: whether the timed sums are to be made.
    """

    hostfile: Path | None = None
    run: Path | None = None
    launcher: Launcher = "pdsh"
    port: int | None = None
    sums: bool = True
    address: str = ""
    include: str = ""
    exclude: str = ""
    processes: int | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        put_off: whether all-reduces were to be timed, but processes would not have met.
    """

    findings: Sequence[Finding]
    scene: Scene
    put_off: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether a run would start."""
        return all(finding.severity != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """``ok``, ``findings``, ``hosts`` (the facts), ``collectives``."""
        return {
            "ok": self.is_ready,
            "findings": [finding.as_json() for finding in self.findings],
            "hosts": {name: dict(facts) for name, facts in self.scene.facts.items()},
            "collectives": dict(self.scene.collectives),
        }


def examine(order: Order) -> Diagnosis:
    """Look at everything; what cannot be looked at is a finding."""
    try:
        hosts = hosts_of(order)
    except RecipeError as error:
        return Diagnosis(list(_bad_lines(error)), Scene(()))
    except LaunchError as error:
        found = Finding(str(error), "this machine", check="programs")
        return Diagnosis([found], Scene(()))
    try:
        goal = target(order.run) if order.run else Target(Path.cwd())
    except RecipeError as error:
        remedy = f"correct it; `onward check {order.run}` looks at all of it"
        found = Finding(str(error), str(order.run), remedy, check="recipe")
        return Diagnosis([found], Scene(hosts))
    try:
        passed = exports(order.environment, own_files(order.environment))
        if not is_local(hosts):
            format_exports(passed)
    except RecipeError as error:
        return Diagnosis([Finding(str(error), "this machine", check="environment")], Scene(hosts))
    scene = Scene(
        hosts=hosts,
        environment=passed,
        launcher=order.launcher,
        programs=frozenset(name for name in PROGRAMS if shutil.which(name)),
        folder=goal.folder,
        is_folder_given=order.run is not None,
        needs=needs(goal.recipe, hosts) if goal.recipe else None,
        port=order.port,
        address=order.address,
        ways=_ways(hosts, order),
        python=sys.executable,
    )
    scene = visited(scene, order.environment)
    findings = judge(scene)
    put_off = order.sums and _prevents_sums(findings)
    if order.sums and not put_off:
        scene = dataclasses.replace(scene, collectives=_sums(scene, order))
        findings = judge(scene)
    return Diagnosis(findings, scene, put_off)


def hosts_of(order: Order) -> tuple[Host, ...]:
    """Those that a run would use; this machine with as many processes as it would start.

    Raises:
        RecipeError: of the hostfile and the filters.
        LaunchError: there is no Slurm allocation that could tell them.
    """
    # What pdsh and mpirun lack is a finding among others; without srun nobody can be asked.
    placement = Placement(
        order.processes,
        order.hostfile,
        launcher="slurm" if order.launcher == "slurm" else "",
        include=order.include,
        exclude=order.exclude,
        master_addr=order.address,
        environment=order.environment,
    )
    here = order.processes or environment.default_processes()
    return placement.hosts() or (Host("localhost", here),)


def _ways(hosts: Sequence[Host], order: Order) -> dict[str, list[str]]:
    """How the launcher reaches each host; nothing where all is on this machine."""
    if is_local(hosts):
        return {}
    launcher = LAUNCHERS[order.launcher]
    return {host.name: launcher.reach(host, order.environment) for host in hosts}


def launch_values(values: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a rank, without what each host finds out by itself."""
    made = environment.worker_environment(given, 1, 1, environment.cores())
    return {**values, "PYTHONPATH": made["PYTHONPATH"], "PYTHONSAFEPATH": "1"}


def visited(scene: Scene, given: Mapping[str, str]) -> Scene:
    """The same scene with every host's facts."""
    values = launch_values(scene.environment, given)
    visit = Visit(scene.hosts, values, scene.ways)
    try:
        visit.begin()
        visit.ask("machine")
        visit.ask("software")
        visit.ask_network(scene.port, scene.address)
        if scene.is_several:
            visit.call_one_another()
        unwritable = _look_at_folder(visit, scene)
        visit.ask_devices()
    finally:
        visit.end()
    return dataclasses.replace(
        scene, facts=visit.facts, unreached=visit.unreached, unwritable=unwritable
    )


def _look_at_folder(visit: Visit, scene: Scene) -> str:
    """Why it cannot be written here; empty if it can."""
    place = place_for(scene.folder)
    visit.ask("storage", folder=str(place))
    try:
        with trial_folder(place) as folder:
            visit.share(folder)
            visit.measure_speed(folder)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _prevents_sums(findings: Sequence[Finding]) -> bool:
    return any(f.severity == "error" and f.check in _NOT_BEFORE for f in findings)


def _sums(scene: Scene, order: Order) -> Facts:
    """One process a host; two here where there is but one host."""
    names = [host.name for host in scene.hosts] if scene.ways else ["process 0", "process 1"]
    address = scene.facts[scene.hosts[0].name]["network"]["master"]
    values = launch_values(scene.environment, order.environment) | {"OMP_NUM_THREADS": "1"}
    if not scene.ways:
        # They would share one GPU, which NCCL refuses.
        values["DS_ACCELERATOR"] = "cpu"
    port = order.port or ports.free_port()
    return collectives(Meeting(names, address, port, values, scene.ways))


def _bad_lines(error: RecipeError) -> Iterator[Finding]:
    """``FILE:LINE: what`` each; or an option that cannot be."""
    for line in str(error).splitlines():
        where, _, what = line.partition(": ")
        if where.startswith("--") or not what:
            yield Finding(line, "this command", check="hostfile")
            continue
        yield Finding(what, where, "lines are 'NAME slots=N'; # begins a comment", check="hostfile")
