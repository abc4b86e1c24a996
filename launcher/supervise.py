"""Keeps a run going: starts it again after a failure, unless that would only fail again."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import Cause, LaunchError, Preempted, RecipeError
from launcher import remains, restarts
from launcher.blame import Failure, blame
from launcher.choosing_hosts import Choice, Rules, choose
from launcher.hosts import Host, one_a_host, unreachable
from launcher.interruption import Interrupted
from launcher.links import ChainRecipe
from launcher.placement import Placement
from launcher.policy import Policy, back_off, decide
from launcher.processes import Tell
from launcher.restarts import Restart
from launcher.run_folder import RunFolder, now

Fits = Callable[[Sequence[str], int], None]
Work = Callable[[Placement], None]
_LOOK_EVERY = 10.0
_ROOM_FOR_ANYTHING = 64 << 20
_FAILS_TWICE = 2


@dataclass(frozen=True, slots=True)
class Part:
    """Stages of a run that are worked on together.

    Attributes:
        stages: in order.
        is_launched: by processes of their own, on the hosts if there are any.
    """

    stages: Sequence[str]
    is_launched: bool


@dataclass
class Supervisor:
    """Keeps the parts of one invocation of ``onward run`` going.

    Attributes:
        recipe, run: whose progress is looked at.
        placement: where it runs while nothing fails.
        policy: how long it is kept going.
        fits: RecipeError if these stages cannot run on so many ranks.
        tell: takes one line for the person who watches.
        signals: times of those that this process itself got.
        ask: which hosts ssh cannot enter, and why.
        pause: waits so many seconds.
        clock: seconds, for how long something took.
    """

    recipe: ChainRecipe
    run: RunFolder
    placement: Placement
    policy: Policy
    fits: Fits
    tell: Tell
    signals: Sequence[float] = ()
    ask: Callable[[Sequence[Host]], dict[str, str]] = unreachable
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time

    restarts: int = field(default=0, init=False)
    fruitless: int = field(default=0, init=False)
    _seen: set[str] = field(default_factory=set, init=False)
    _before: Failure | None = field(default=None, init=False)
    _failures: Counter[str] = field(default_factory=Counter, init=False)
    _failing: dict[str, str] = field(default_factory=dict, init=False)
    _choice: Choice = field(default_factory=Choice, init=False)
    _said: set[str] = field(default_factory=set, init=False)
    _is_begun: bool = field(default=False, init=False)

    def require_possible(self) -> None:
        """RecipeError if the policy asks for what there cannot be."""
        hosts = self.placement.hosts()
        least = self.policy.min_hosts
        if least is not None and not hosts:
            msg = f"--min-hosts {least}: there is no --hostfile whose hosts could be left out"
            raise RecipeError(msg)
        if least is not None and least > len(hosts):
            msg = f"--min-hosts {least}: the hostfile names {len(hosts)}"
            raise RecipeError(msg)

    def keep(self, part: Part, work: Work) -> None:
        """Do the work of a part until it is done.

        Raises:
            OnwardError, Exception: the last failure, when it is of no use to start again; why was
                told.
            Interrupted: a signal came to this process.
        """
        self._seen |= restarts.achieved(self.recipe, self.run)
        placement = self._placed(part)
        while True:
            began = self.clock()
            try:
                work(placement)
            except (Exception, Interrupted) as error:
                if self.signals:
                    raise
                placement = self._placed_again(part, error, began)
            else:
                return

    def _placed_again(self, part: Part, error: BaseException, began: float) -> Placement:
        """Where the next start runs, once it is time for it; the error itself if there is none."""
        failed = self.clock()
        used = self._used(part)
        folder = self.run.launch(part.stages[0]) if part.is_launched else None
        failure = blame(error, folder, used)
        self._count(failure)
        decision = decide(failure, self._before, moved=self._is_moved(failure, part))
        self._before = failure
        if decision.act == "end":
            self._end(error, decision.why)
        if self.fruitless >= self.policy.restarts:
            self._end(error, f"{self.fruitless} restarts have brought no progress (--restarts)")
        self.fruitless += 1
        at_once = decision.act == "at_once" and self.placement.port is None
        seconds = 0.0 if at_once else back_off(self.fruitless)
        self.tell(f"failed ({failure.kind}): {failure.message}; starting again in {seconds:g} s")
        try:
            if folder is not None:
                self._clear(folder, used)
            self.pause(seconds)
            if decision.act == "room" and failure.cause:
                self._wait_for_room(failure.cause, error, part)
            placement = self._placed(part)
        except Interrupted:
            if isinstance(error, Preempted):
                # The state was saved before this process was asked to stop, too.
                raise error from None
            raise
        self._note(failure, part, began, failed)
        return placement

    def _used(self, part: Part) -> Sequence[Host]:
        """The hosts of the last start, with as many slots as it had ranks there."""
        if not part.is_launched:
            return ()
        runs = self.recipe.stages[part.stages[0]].RUNS
        return one_a_host(self._choice.hosts) if runs == "hosts" else self._choice.hosts

    def _count(self, failure: Failure) -> None:
        """Whether there was progress since the last start, and whose failure this was."""
        achieved = restarts.achieved(self.recipe, self.run)
        if achieved - self._seen:
            self.fruitless, self._before = 0, None
        self._seen |= achieved
        for name in failure.hosts:
            self._failures[name] += 1
            if self._failures[name] >= _FAILS_TWICE:
                self._failing[name] = f"failed {self._failures[name]} times"

    def _is_moved(self, failure: Failure, part: Part) -> bool:
        """Whether the next start does without a host that this failure was on."""
        if not failure.hosts or not set(failure.hosts) & set(self._failing):
            return False
        choice = choose(self.placement.hosts(), {}, self._failing, self._rules(part))
        return bool(set(failure.hosts) & set(choice.left_out))

    def _end(self, error: BaseException, why: str) -> None:
        self.tell(f"not started again: {why}")
        raise error

    def _clear(self, folder: Path, hosts: Sequence[Host]) -> None:
        """Keep what the failed launch has left, and end what of it is still at work elsewhere."""
        try:
            restarts.keep_words(self.run, folder)
        except OSError as error:
            self.tell(f"warning: {folder}: not kept: {error.strerror or error}")
        for name, pids in remains.end_remains(folder, hosts, self._reach).items():
            self.tell(f"{name}: processes of the failed start ended: {', '.join(map(str, pids))}")

    def _reach(self, host: Host) -> list[str]:
        return self.placement.reach([host])

    def _rules(self, part: Part) -> Rules:
        hosts = self.placement.hosts()
        on_ranks = [name for name in part.stages if self.recipe.stages[name].RUNS == "ranks"]
        least = len(hosts) if self.policy.min_hosts is None else self.policy.min_hosts
        address = self.placement.master_addr
        first = f"--master-addr {address} is an address of it" if address else ""
        return Rules(least, lambda world: self.fits(on_ranks, world), first)

    def _placed(self, part: Part) -> Placement:
        """With the hosts that answer and do not fail; waits for those that are needed."""
        hosts = self.placement.hosts()
        if not part.is_launched or not hosts:
            self._choice = Choice()
            return self.placement
        waited, is_first, self._is_begun = 0.0, not self._is_begun, True
        while True:
            trouble = self.ask(hosts)
            self._choice = choose(hosts, trouble, self._failing, self._rules(part))
            if self._choice.hosts:
                self._tell_choice()
                return self.placement.without(self._choice.left_out)
            lines = [f"{name}: {why}" for name, why in trouble.items()]
            why = "\n".join(["hosts that cannot be reached:", *lines, self._choice.trouble])
            if is_first:
                raise LaunchError(why)
            if waited >= self.policy.patience:
                msg = f"{why}\nwaited {self.policy.patience:g} s for them (--patience)"
                raise LaunchError(msg)
            if not waited:
                self.tell(f"{why}\nwaiting up to {self.policy.patience:g} s for them")
            self.pause(_LOOK_EVERY)
            waited += _LOOK_EVERY

    def _tell_choice(self) -> None:
        """Who is left out, and who should be and cannot; once each."""
        out = [f"{name}: left out: {why}" for name, why in self._choice.left_out.items()]
        kept = [f"{name}: fails, but stays: {why}" for name, why in self._choice.kept.items()]
        for line in [*out, *kept]:
            if line not in self._said:
                self.tell(line)
        self._said = {*out, *kept}

    def _wait_for_room(self, cause: Cause, error: BaseException, part: Part) -> None:
        """Until there is room for the newest checkpoint's size, or what was asked for if more."""
        sizes = [
            restarts.bytes_in(restarts.newest_checkpoint(self.run, name)) for name in part.stages
        ]
        needed = max(cause.needed or 0, *sizes) or _ROOM_FOR_ANYTHING
        waited = 0.0
        while (free := _free(Path(cause.path))) is not None and free < needed:
            said = f"{cause.path}: {needed} bytes needed, {free} bytes free"
            if waited >= self.policy.patience:
                self._end(error, f"{said} after {waited:g} s (--patience)")
            if not waited:
                self.tell(f"{said}; waiting up to {self.policy.patience:g} s for room")
            self.pause(_LOOK_EVERY)
            waited += _LOOK_EVERY

    def _note(self, failure: Failure, part: Part, began: float, failed: float) -> None:
        """For the report, and for who watches."""
        self.restarts += 1
        undone = [name for name in part.stages if not restarts.is_done(self.run, name)]
        stage = (undone or list(part.stages))[0]
        newest = restarts.newest_checkpoint(self.run, stage)
        line = Restart(
            time=now(),
            after_exit_code=failure.exit_code,
            kind=failure.kind,
            message=failure.message,
            stage=stage,
            step=int(newest.name.removeprefix("step-")) if newest else None,
            hosts=[host.name for host in self._choice.hosts] or ["localhost"],
            left_out=dict(self._choice.left_out),
            waited_seconds=round(self.clock() - failed, 1),
            lost_seconds=round(_since(newest, began, failed), 1),
        )
        try:
            restarts.note(self.run, line)
        except OSError as error:
            self.tell(f"warning: {self.run.restarts}: {error.strerror}: this restart is not in it")
        place = "the beginning" if line.step is None else f"step {line.step}"
        self.tell(
            f"restart {self.restarts}: {stage} from {place}, on {', '.join(line.hosts)}, after "
            f"{line.waited_seconds:g} s; {line.lost_seconds:g} s of work are lost"
        )


def _since(newest: Path | None, began: float, failed: float) -> float:
    """Seconds of the failed start after its last checkpoint."""
    try:
        saved = newest.stat().st_mtime if newest else began
    except OSError:
        saved = began
    return max(0.0, failed - min(max(began, saved), failed))


def _free(path: Path) -> int | None:
    """Bytes, where the path or its nearest parent lies; 0 where no further file may be made."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        has_names = not found.f_files or found.f_favail > 0
        return found.f_bavail * found.f_frsize if has_names else 0
    return None
