"""Runs a chain: in this process what can be, through the deepspeed launcher what must be."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher import chain, provenance
from launcher.agreement import local_paths
from launcher.command import deepspeed_program
from launcher.hosts import require_reachable
from launcher.interruption import signals_interrupt
from launcher.links import ChainRecipe
from launcher.processes import Tell
from launcher.run_folder import RunFolder
from launcher.shared import require_shared
from launcher.start import Placement, launch_stages

Precheck = Callable[[Sequence[str], int], None]


@dataclass(frozen=True, slots=True)
class Conductor:
    """One invocation of ``onward run``.

    Attributes:
        tell: takes one line for the person who watches.
        precheck: what else must hold for (launched stages, number of ranks).
    """

    recipe: ChainRecipe
    request: chain.Request
    placement: Placement
    tell: Tell
    precheck: Precheck

    @property
    def folder(self) -> RunFolder:
        """Where it all goes."""
        return RunFolder(self.recipe.output.absolute())

    def check(self) -> list[str]:
        """Everything that can be told without running or writing; the stages concerned."""
        names = chain.select(self.recipe, self.folder, self.request)
        hosts = self.placement.hosts()
        launched = [name for name in names if self._is_launched(name)]
        if launched:
            deepspeed_program(hosts)
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
        require_reachable(hosts)
        with signals_interrupt(), self.folder.lock():
            self.folder.remove_leftovers()
            names = chain.select(self.recipe, self.folder, self.request)
            launched = (self.recipe.stages[name] for name in names if self._is_launched(name))
            require_shared(hosts, self.folder.root, local_paths(launched))
            self._record({host.name: host.slots for host in hosts})
            for name in names:
                if name in self.request.redo:
                    self.folder.discard(name)
            self._run_stages(names)

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

    def _run_stages(self, names: Sequence[str]) -> None:
        waiting = list(names)
        while waiting:
            name = waiting[0]
            if self._settle(name):
                self.tell(f"{name}: done already")
            elif self._is_launched(name):
                together = self._launched_with(waiting)
                replace = sorted(self._replaceable().intersection(together))
                placement = self.placement.for_stage(self.recipe.stages[name].RUNS)
                launch_stages(self.folder, together, replace, placement, self.tell)
                del waiting[: len(together)]
                continue
            else:
                self._run_here(name)
            waiting.pop(0)

    def _launched_with(self, waiting: Sequence[str]) -> list[str]:
        """The first one, and those after it that the same processes can run."""
        if self.recipe.stages[waiting[0]].RUNS == "hosts":
            return [waiting[0]]
        # Importing torch costs seconds each time.
        on_ranks = itertools.takewhile(lambda n: self.recipe.stages[n].RUNS == "ranks", waiting)
        return list(on_ranks)

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
