"""Checkpoints every so many steps, at the end and at a stop: at once, or behind the training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from configs.errors import OnwardError
from engine.checkpoint import commit, preflight, prune, save
from engine.checkpoint.behind import Behind
from engine.checkpoint.disk import DiskError
from engine.checkpoint.save import Ranks, Source, on_first
from engine.checkpoint.snapshot import Failed, HostMemory, Snapshot
from engine.checkpoint_policy import CheckpointConfig
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.protocols import Backend, Hook, Progress, StepRecord, Stop

if TYPE_CHECKING:
    from engine.distributed import Group

# The slowest rank's file, on a slow disk; a rank that is lost is noticed at once, and elsewhere.
LIMIT = timedelta(hours=2)
# After a step that raised: for how long a save that had begun before it may go on.
GRACE_SECONDS = 300.0
_TOLD_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Written:
    """A save that is done: bytes of all ranks, and when (``perf_counter``) it was there."""

    bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A save behind the training.

    Attributes:
        step: what it saves.
        began: ``perf_counter`` when the hook was called for it.
        stalled: seconds for which the training had to wait until it was under way.
    """

    step: int
    began: float
    stalled: float
    snapshot: Snapshot | Failed
    work: Behind[_Written]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What other hooks want of the checkpoints; equal on every rank.

    Attributes:
        saved: (step) -> whether the state after it, the present one, must be saved.
        in_doubt: steps behind which a rollback may take back what was done (each of as many
            finished ones); the newest checkpoint up to each stays.
        needs: (step) -> the step whose checkpoint stays as long as that of ``step`` does.
        most: how many checkpoints stay at most, beside those that the policy names.
    """

    saved: Callable[[int], bool] = lambda _: False
    in_doubt: Callable[[], Sequence[int]] = tuple
    needs: Callable[[int], int | None] = lambda _: None
    most: int = 0


class CheckpointHook(Hook):
    """Saves after every ``every``-th step, after the last one, and where a stop is agreed on.

    Also where another hook wishes it. The last three are there when ``after_step`` returns,
    whatever the mode. In mode ``async`` the
    others are copied to host memory and written by a thread, one at a time: the next one waits for
    it. An error in the thread comes out on all ranks where the next one is due.

    Writes ``checkpoints.jsonl`` beside the checkpoints' folder, a line a save: step, bytes (of all
    ranks), seconds (until it was there), stall_seconds (for which the training waited), mode.

    Stands last among the hooks: what is saved is what the others have seen.

    Attributes:
        stall_seconds: for which the training has waited so far, on this rank.
        bytes: written so far, by all ranks together; of what was seen to be there.
        wishes: of other hooks.
    """

    name = "checkpointing"

    def __init__(  # noqa: PLR0913, PLR0917 -- what a save needs, and what it is told by
        self,
        root: Path,
        fingerprint: str,
        state: Callable[[Progress], Mapping[str, Any]],
        policy: CheckpointConfig,
        steps: int,
        stop: Stop | None = None,
        sinks: Sequence[Sink] = (),
        ranks: Ranks | None = None,
    ) -> None:
        """Set up.

        Args:
            root: the stage's folder of checkpoints.
            fingerprint: of the recipe.
            state: gives the JSON-able rest of the state (cursor, hooks); called on every rank.
            policy: when, how, and how many stay.
            steps: the last step of the run.
            stop: what may end the run early.
            sinks: get the numbers of each line, too, as kind ``checkpoint``.
            ranks: who takes part; None: all of ``engine.distributed``, in a group of their own.
        """
        self.wishes = Wishes()
        self.stall_seconds = 0.0
        self.bytes = 0
        self._root = root
        self._fingerprint = fingerprint
        self._state = state
        self._policy = policy
        self._steps = steps
        self._stop = stop
        self._sinks = tuple(sinks)
        self._lines = JsonLines(root.parent / "checkpoints.jsonl")
        self._given = ranks
        self._group: Group | None = None
        self._memory = HostMemory()
        self._in_flight: _InFlight | None = None
        self._saved_step: int | None = None

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Make the group; cut away later lines; see whether the checkpoints will fit.

        Raises:
            DiskError: not even one checkpoint fits (with ``on_disk_error: stop``).
        """
        from engine import distributed

        if self._given is None and self._group is None:
            self._group = distributed.Group(LIMIT)
        self._await(is_last=False)
        self._saved_step = progress.step or None
        if backend.rank == 0:
            self._lines.cut_after(progress.step or BEFORE_ALL)
        beside = self.wishes.most
        preflight.check(self._root, backend, self._policy, self._steps, self._ranks, beside)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Save if it is time.

        Raises:
            DiskError: the disk refuses, now or to the save before, and the policy is to stop or
                there is no next time; earlier checkpoints are untouched.
        """
        del record
        began = perf_counter()
        is_last = progress.step == self._steps or (self._stop is not None and self._stop.is_agreed)
        if is_last or self.wishes.saved(progress.step):
            self._await(is_last=True)
            self._save_now(backend, progress, began, is_last=True)
        elif progress.step % self._policy.every == 0:
            self._await(is_last=False)
            self._save_due(backend, progress, began)
        elif self._in_flight and self._in_flight.work.is_done and not self._in_flight.work.failed:
            self._collect()
            return
        else:
            return
        self.stall_seconds += perf_counter() - began

    def settle(self) -> None:
        """Wait, however long, for what is in flight: later checkpoints are deleted after this."""
        if self._in_flight is not None:
            self._in_flight.work.wait(None)
            self._finish_after_error()
            # Ranks that had given it up and ranks that had not begin anew alike, with a new group.
            self._release()

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """After a step that raised, finish what is in flight: it is of a step that was good."""
        del backend, progress
        self._finish_after_error()
        if self._in_flight is None:
            self._release()

    def _release(self) -> None:
        self._memory = HostMemory()
        if self._group is not None:
            self._group.close()
            self._group = None

    @property
    def _ranks(self) -> Ranks:
        ranks = self._given or self._group
        if ranks is None:
            msg = "the checkpoint hook was not started"
            raise RuntimeError(msg)
        return ranks

    def _save_due(self, backend: Backend, progress: Progress, began: float) -> None:
        is_sync = self._policy.mode == "sync"
        if is_sync:
            self._save_now(backend, progress, began, is_last=False)
        if self._stop and self._stop.agreed():
            # Who asked while the disk was waited for need not wait for one more step and its save.
            self._save_now(backend, progress, began, is_last=True)
        elif not is_sync:
            self._save_behind(backend, progress, began)

    def _save_now(
        self, backend: Backend, progress: Progress, began: float, *, is_last: bool
    ) -> None:
        if self._saved_step == progress.step:
            return
        try:
            written = self._write(progress, backend, self._agreed_state(progress))
        except DiskError as error:
            if is_last or self._policy.on_disk_error == "stop":
                raise
            self._go_on_after(progress.step, error)
        else:
            self._note(progress.step, written, began, written.at - began, "sync")

    def _save_behind(self, backend: Backend, progress: Progress, began: float) -> None:
        try:
            state = deepcopy(self._agreed_state(progress))
        except DiskError as error:
            if self._policy.on_disk_error == "stop":
                raise
            self._go_on_after(progress.step, error)
            return
        snapshot = self._memory.copy_of(backend)
        work = Behind(lambda: self._write(progress, snapshot, state))
        stalled = perf_counter() - began
        self._in_flight = _InFlight(progress.step, began, stalled, snapshot, work)

    def _agreed_state(self, progress: Progress) -> Mapping[str, Any]:
        """The hooks' states; if one cannot be given on one rank, its error on all of them."""
        state: Mapping[str, Any] = {}
        failed: OnwardError | None = None
        try:
            state = self._state(progress)
        except OnwardError as error:
            failed = error
        for told in self._ranks.all_gather_object(failed):
            if told is not None:
                raise told
        return state

    def _write(self, progress: Progress, source: Source, state: Mapping[str, Any]) -> _Written:
        """Save and prune, the same in either mode; all ranks raise alike."""
        ranks, policy, step = self._ranks, self._policy, progress.step
        folder = save(self._root, progress, source, state, self._fingerprint, ranks)
        at = perf_counter()

        def tidy() -> int:
            _prune(self._root, policy, step, self.wishes)
            return sum(file["size"] for file in commit.read_manifest(folder)["files"])

        return _Written(on_first(ranks, tidy), at)

    def _await(self, *, is_last: bool) -> None:
        """Wait for what is in flight, and raise its error unless the policy is to go on.

        Before the last save the error of another one is no reason not to try.
        """
        held = self._in_flight
        if held is None:
            return
        began = perf_counter()
        try:
            self._collect()
        except OnwardError as error:
            may_go_on = isinstance(error, DiskError) and self._policy.on_disk_error == "go_on"
            if not may_go_on and not is_last:
                raise
            self._go_on_after(held.step, error)
        waited = perf_counter() - began
        if waited > _TOLD_SECONDS and self._ranks.rank() == 0:
            _log.warning(
                "training waited %.1f s for the checkpoint of step %d to be written; save less "
                "often, or to a faster disk",
                waited,
                held.step,
            )

    def _collect(self) -> None:
        """Take in what the thread has done, once it is done; raises what it raised."""
        held, self._in_flight = self._in_flight, None
        if held is None:
            return
        written = held.work.result()
        device = held.snapshot.device_seconds()
        self.stall_seconds += device
        self._note(held.step, written, held.began, held.stalled + device, "async")

    def _finish_after_error(self) -> None:
        held = self._in_flight
        if held is None:
            return
        if not held.work.wait(GRACE_SECONDS):
            _log.warning(
                "the checkpoint of step %d is not there %.0f s after the run's end and is given "
                "up; the one before it stands",
                held.step,
                GRACE_SECONDS,
            )
            return
        try:
            self._collect()
        except Exception as error:  # what ended the run is the error to tell
            _log.warning("checkpoint of step %d not saved: %s", held.step, error)

    def _go_on_after(self, step: int, error: OnwardError) -> None:
        if self._ranks.rank() == 0:
            _log.warning(
                "checkpoint of step %d not saved: %s; the next one is tried when it is due",
                step,
                error,
            )

    def _note(self, step: int, written: _Written, began: float, stalled: float, mode: str) -> None:
        self._saved_step = step
        self.bytes += written.bytes
        if self._ranks.rank() > 0:
            return
        seconds = written.at - began
        numbers = {"bytes": written.bytes, "seconds": seconds, "stall_seconds": stalled}
        self._lines.append({"step": step, **numbers, "mode": mode})
        for sink in self._sinks:
            sink.write("checkpoint", step, numbers)


def _prune(root: Path, policy: CheckpointConfig, step: int, wishes: Wishes) -> None:
    """What cannot be deleted is left for the next time: the checkpoint itself is there."""
    try:
        prune(root, policy.keep, step, policy.keep_every, wishes.in_doubt(), wishes.needs)
    except DiskError as error:
        _log.warning("old checkpoints were not deleted: %s", error)
