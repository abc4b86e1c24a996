"""Runs a chain: in this process what can be, through the deepspeed launcher what must be."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher import chain, provenance
from launcher.command import deepspeed_program
from launcher.hosts import require_reachable
from launcher.interruption import signals_interrupt
from launcher.links import ChainRecipe
from launcher.processes import Tell
from launcher.run_folder import RunFolder
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
        launched = [name for name in names if self.recipe.stages[name].LAUNCHED]
        hosts = self.placement.hosts()
        if launched:
            deepspeed_program(hosts)
            self.precheck(launched, self.placement.world())
        chain.check(self.recipe, self.folder, names)
        return names

    def run(self) -> None:
        """Check, then run what is not done.

        Raises:
            OnwardError: something does not fit, or what stopped a stage.
            Interrupted: SIGTERM or SIGINT came; all processes that were started are gone.
        """
        self.check()
        hosts = self.placement.hosts()
        require_reachable(hosts)
        with signals_interrupt(), self.folder.lock():
            names = chain.select(self.recipe, self.folder, self.request)
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
            elif self.recipe.stages[name].LAUNCHED:
                # Those that follow share the launch: importing torch costs seconds each time.
                launched = itertools.takewhile(lambda n: self.recipe.stages[n].LAUNCHED, waiting)
                together = list(launched)
                replace = sorted(self._replaceable().intersection(together))
                launch_stages(self.folder, together, replace, self.placement, self.tell)
                del waiting[: len(together)]
                continue
            else:
                self._run_here(name)
            waiting.pop(0)

    def _replaceable(self) -> set[str]:
        return chain.replaceable(self.recipe, self.request.redo)

    def _settle(self, name: str) -> bool:
        """Whether it is done; another recipe's results are discarded or refused here."""
        standing = chain.survey(self.recipe, self.folder)[name]
        if standing.state == "foreign":
            if name not in self._replaceable():
                chain.refuse_foreign(self.folder, {name: standing}, [name])
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
