"""Runs a chain: in this process what can be, through the deepspeed launcher what must be."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs.stage import Runs
from launcher import chain, provenance
from launcher.agreement import local_paths
from launcher.hosts import Host, require_reachable, unreachable
from launcher.interruption import signals_interrupt
from launcher.links import ChainRecipe
from launcher.placement import Placement
from launcher.policy import Policy
from launcher.processes import Tell
from launcher.run_folder import RunFolder
from launcher.shared import require_shared
from launcher.start import launch_stages
from launcher.supervise import Part, Supervisor

Precheck = Callable[[Sequence[str], int], None]


@dataclass(frozen=True, slots=True)
class Conductor:
    """One invocation of ``onward run``.

    Attributes:
        tell: takes one line for the person who watches.
        precheck: what else must hold for (launched stages, number of ranks).
        policy: how long it is kept going after failures; None: the first one ends it.
    """

    recipe: ChainRecipe
    request: chain.Request
    placement: Placement
    tell: Tell
    precheck: Precheck
    policy: Policy | None = None

    @property
    def folder(self) -> RunFolder:
        """Where it all goes."""
        return RunFolder(self.recipe.output.absolute())

    def check(self) -> list[str]:
        """Everything that can be told without running or writing; the stages concerned."""
        names = chain.select(self.recipe, self.folder, self.request)
        self.placement.hosts()
        launched = [name for name in names if self._is_launched(name)]
        if launched:
            self.placement.require()
        on_ranks = [name for name in launched if self.recipe.stages[name].RUNS == "ranks"]
        if on_ranks:
            self.precheck(on_ranks, self.placement.world())
        chain.check(self.recipe, self.folder, names)
        anew = self._replaceable()
        chain.refuse_outdated(self.recipe, self.folder, [n for n in names if n not in anew])
        return names

    def _is_launched(self, name: str) -> bool:
        """A stage that hosts share runs here where there is but one."""
        runs = self.recipe.stages[name].RUNS
        return runs == "ranks" or (runs == "hosts" and len(self.placement.hosts()) > 1)

    def run(self) -> None:
        """Check, then run what is not done.

        Raises:
            OnwardError: something does not fit, or what stopped a stage.
            Preempted: a signal came, and the state of the stage was saved.
            Interrupted: a signal came; all processes that were started are gone.
        """
        self.check()
        hosts = self.placement.hosts()
        by_ssh = self.placement.entered_by_ssh()
        supervisor = self._supervisor()
        if supervisor:
            supervisor.require_possible()
        else:
            require_reachable(by_ssh)
        with signals_interrupt() as signals, self.folder.lock():
            self.folder.remove_leftovers()
            names = chain.select(self.recipe, self.folder, self.request)
            launched = (self.recipe.stages[name] for name in names if self._is_launched(name))
            if supervisor:
                # It waits for those that do not answer, or goes on without them.
                absent = unreachable(by_ssh)
                by_ssh = tuple(host for host in by_ssh if host.name not in absent)
            require_shared(by_ssh, self.folder.root, local_paths(launched))
            self._record({host.name: host.slots for host in hosts})
            for name in names:
                if name in self.request.redo:
                    self.folder.discard(name)
            if supervisor:
                supervisor.signals = signals
            self._run_stages(names, supervisor)

    def _supervisor(self) -> Supervisor | None:
        if self.policy is None:
            return None
        return Supervisor(
            self.recipe,
            self.folder,
            self.placement,
            self.policy,
            self.precheck,
            self.tell,
            ask=self._unreachable,
        )

    def _unreachable(self, hosts: Sequence[Host]) -> dict[str, str]:
        """Of those that are entered by ssh."""
        by_ssh = self.placement.entered_by_ssh()
        return unreachable([host for host in hosts if host in by_ssh])

    def _record(self, hosts: dict[str, int]) -> None:
        values = self.recipe.model_dump(mode="json")
        self.folder.write_recipe(values | {"output": str(self.folder.root)})
        placed = hosts or {"localhost": self.placement.world()}
        provenance.record(
            self.folder,
            self.recipe.seed,
            provenance.command_line(),
            placed,
            self.placement.threads(),
        )

    def _run_stages(self, names: Sequence[str], supervisor: Supervisor | None) -> None:
        waiting = list(names)
        while waiting:
            if self._settle(waiting[0]):
                self.tell(f"{waiting.pop(0)}: done already")
                continue
            together = self._together(waiting)
            work = functools.partial(self._work, together)
            if supervisor:
                supervisor.keep(Part(together, self._is_launched(together[0])), work)
            else:
                work(self.placement)
            del waiting[: len(together)]

    def _work(self, names: Sequence[str], placement: Placement) -> None:
        """Run stages that go together, once."""
        stage = self.recipe.stages[names[0]]
        if self._is_launched(names[0]):
            replace = self.replaced(names)
            launch_stages(self.folder, names, replace, placement.for_stage(stage.RUNS), self.tell)
        else:
            self._run_here(names[0])

    def _together(self, waiting: Sequence[str]) -> list[str]:
        """The first one, and those after it that the same processes can run."""
        if self.recipe.stages[waiting[0]].RUNS != "ranks":
            return [waiting[0]]
        # Importing torch costs seconds each time.
        on_ranks = itertools.takewhile(lambda n: self.recipe.stages[n].RUNS == "ranks", waiting)
        return list(on_ranks)

    def groups(self, names: Sequence[str]) -> list[tuple[Runs, list[str]]]:
        """The stages that are not done, as they would be run together, and by what."""
        found: list[tuple[Runs, list[str]]] = []
        standings = chain.survey(self.recipe, self.folder)
        anew = self._replaceable()
        waiting = [n for n in names if n in anew or standings[n].state != "done"]
        while waiting:
            launched = self._is_launched(waiting[0])
            together = self._together(waiting)
            found.append((self.recipe.stages[waiting[0]].RUNS if launched else "once", together))
            del waiting[: len(together)]
        return found

    def replaced(self, names: Sequence[str]) -> list[str]:
        """Those of the stages that may be made anew."""
        return sorted(self._replaceable().intersection(names))

    def _replaceable(self) -> set[str]:
        return chain.replaceable(self.recipe, self.request.redo)

    def _settle(self, name: str) -> bool:
        """Whether it is done; what another recipe has left is discarded or refused here."""
        standing = chain.survey(self.recipe, self.folder)[name]
        if standing.state == "foreign" and name not in self._replaceable():
            chain.refuse_foreign(self.folder, {name: standing}, [name])
        if standing.leftover:
            self.tell(f"{name}: an unfinished attempt with another recipe lay there; begun anew")
        if standing.state == "foreign" or standing.leftover:
            self.folder.discard(name)
        return standing.state == "done"

    def _run_here(self, name: str) -> None:
        context = chain.enter(self.recipe, self.folder, name)
        if context is None:
            return
        self.tell(f"{name}: running")
        stage = self.recipe.stages[name]
        try:
            stage.check(context)
            fingerprint = stage.run(context)
        except BaseException as error:
            chain.fail(self.folder, name, error)
            raise
        chain.finish(self.folder, name, fingerprint)
