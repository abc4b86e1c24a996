"""What each rank runs: ``deepspeed --hostfile HOSTS --module launcher.worker RECIPE STAGE ...``.

`onward run` starts it so; by hand it does the same, and says on stderr what `onward run` would.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from configs.errors import LaunchError, OnwardError, Preempted
from launcher import agreement
from launcher.heartbeat import Pulse
from launcher.job import Job, Load, job_of, load_recipe
from launcher.outcome import Reporter, says_lost_peer
from launcher.rank_log import STAGE_MARK, RankLog, ToLauncher
from launcher.secrecy import mask
from launcher.watch import Watch

if TYPE_CHECKING:
    from configs.stage import StageContext
    from launcher.run_folder import RunFolder, Workers

logger = logging.getLogger("launcher.worker")
# deepspeed looks once a second which process has ended, and reports the one it finds first.
_LET_THE_FIRST_BE_SEEN = 2.5


def main(arguments: Sequence[str] | None = None, load: Load = load_recipe) -> NoReturn:
    """Run the named stages on this rank; exits with 0 or the code of the error's kind.

    ``load`` reads the recipe.
    """
    run(job_of(sys.argv[1:] if arguments is None else arguments, load))


def run(job: Job) -> NoReturn:
    """Run a job's stages in the group of all ranks, and leave with the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    pulse = Pulse(job.folder, job.launch_id) if job.folder and job.launch_id else None
    _leave_if_unwanted(pulse)
    reporter = _reporter(job, rank, pulse)
    log = _rank_log(job, rank, reporter)
    _log_progress(log, rank)
    watch = Watch(job.stop, job.grace, job.folder, reporter, pulse)
    if log:
        watch.each_second = log.keep_small
    watch.start()
    on_hosts = job.recipe.stages[job.stages[0]].RUNS == "hosts"
    try:
        (_run_on_hosts if on_hosts else _run_stages)(job, _Place(reporter, log))
    except OnwardError as error:
        _say_last_word(job, reporter, error, rank)
        _leave(error.exit_code)
    except Exception as error:
        _say_last_word(job, reporter, error, rank)
        if says_lost_peer(str(error)):
            time.sleep(_LET_THE_FIRST_BE_SEEN)
        _leave(1)
    if reporter:
        reporter.done()
    _leave(0)


def _leave(code: int) -> NoReturn:
    """Exit at once.

    After an error an orderly shutdown would wait for ranks that wait for this one; after success
    it now and then aborts a CPU worker in the teardown of its threads ("terminate called").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_if_unwanted(pulse: Pulse | None) -> None:
    """A rank that comes late, of a launch that is over, leaves without a word in its folder."""
    while pulse and (sign := pulse.look()) != "alive":
        if sign != "waiting":
            sys.stderr.write(f"this launch is not waited for any more ({sign})\n")
            _leave(LaunchError.exit_code)
        time.sleep(0.2)


def _reporter(job: Job, rank: int, pulse: Pulse | None) -> Reporter | None:
    if job.folder is None:
        return None
    return Reporter(job.folder, rank, pulse.is_own) if pulse else Reporter(job.folder, rank)


def _rank_log(job: Job, rank: int, reporter: Reporter | None) -> RankLog | None:
    """Under a launcher; by hand everything stays on the terminal."""
    from launcher.run_folder import RunFolder

    if reporter is None:
        return None
    log = RankLog(rank, int(os.environ.get("WORLD_SIZE", "1")), job.launch_id or "")
    faulthandler.enable(2)
    log.enter(RunFolder(job.recipe.output).stage(job.stages[0]))
    reporter.logs_to(log.path)
    return log


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a rank leaves word, if it is under a launcher."""

    reporter: Reporter | None
    log: RankLog | None

    def enters(self, folder: Path) -> None:
        """It begins the stage that has this folder."""
        if self.reporter is None or self.log is None:
            return
        self.log.enter(folder)
        self.reporter.enters(folder.name, self.log.path)

    def tell_of_stage(self, name: str) -> None:
        """The launcher follows rank 0 from stage to stage."""
        if self.log:
            self.log.say(f"{STAGE_MARK}{name}\n")


def _say_last_word(job: Job, reporter: Reporter | None, error: Exception, rank: int) -> None:
    if not isinstance(error, OnwardError):
        sys.stderr.write(mask("".join(traceback.format_exception(error))))
    if reporter:
        reporter.failed(error)
        return
    what = "" if isinstance(error, Preempted) else "error: "
    sys.stderr.write(f"rank {rank}: {what}{mask(str(error))}\n")
    _mark_failed(job, error, rank)


def _mark_failed(job: Job, error: Exception, rank: int) -> None:
    """By hand there is no launcher to do it."""
    from launcher.chain import fail
    from launcher.run_folder import RunFolder

    if rank == 0:
        for name in job.stages:
            fail(RunFolder(job.recipe.output), name, error)


def _run_stages(job: Job, place: _Place) -> None:
    from engine import distributed
    from launcher import jit
    from launcher.run_folder import RunFolder

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        jit.build_operators()
    run = RunFolder(job.recipe.output)
    with _alone(job, run):
        paths = agreement.local_paths(job.recipe.stages[name] for name in job.stages)
        distributed.start(meeting=agreement.meeting(job.folder, paths))
        for name in job.stages:
            _end_if_asked(job, name)
            context = _enter(job, run, name, place)
            if context is None:
                continue
            place.enters(context.folder)
            _run_stage(job, run, replace(context, stop=job.stop, launch=job.folder))
        distributed.stop()


def _end_if_asked(job: Job, name: str) -> None:
    """Preempted on all ranks, if one was asked while the stage before this one was ending."""
    from engine import distributed

    if any(distributed.all_gather_object(job.stop.is_asked)):
        msg = f"stopped before stage {name}; run the same command again to go on"
        raise Preempted(msg)


def _run_on_hosts(job: Job, place: _Place) -> None:
    """Without torch and its collectives: the shared file system is all that the hosts need."""
    from configs.stage import Share
    from launcher import chain
    from launcher.run_folder import RunFolder

    run = RunFolder(job.recipe.output)
    share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    cards = agreement.Cards(job.folder, job.launch_id or "") if job.folder else None
    if cards:
        cards.leave(
            share.index, agreement.local_paths(job.recipe.stages[name] for name in job.stages)
        )
        cards.compare(share.count)
    with _alone(job, run):
        for name in job.stages:
            context = chain.join(job.recipe, run, name, share)
            if context is None:
                continue
            place.enters(context.folder)
            if share.index == 0:
                place.tell_of_stage(name)
            fingerprint = job.recipe.stages[name].run(context)
            if share.index == 0:
                if cards:
                    # With those, too, that came later.
                    cards.compare()
                chain.finish(run, name, fingerprint)


@contextlib.contextmanager
def _alone(job: Job, run: "RunFolder") -> Iterator[None]:
    """Under `onward run` the launcher holds the run folder; by hand rank 0 does."""
    by_hand = job.folder is None and os.environ.get("RANK", "0") == "0"
    with run.lock() if by_hand else contextlib.nullcontext():
        yield


def _enter(job: Job, run: "RunFolder", name: str, place: _Place) -> "StageContext | None":
    """Rank 0 decides and marks the stage as running; the others hear of it."""
    from engine import distributed

    if distributed.rank() > 0:
        answer: StageContext | OnwardError | None = distributed.broadcast_object(None)
        if isinstance(answer, OnwardError):
            # Rank 0 tells of it.
            _leave(answer.exit_code)
        return answer
    try:
        context = _begin(job, run, name, place)
    except OnwardError as error:
        distributed.broadcast_object(error)
        raise
    distributed.broadcast_object(context)
    return context


def _begin(job: Job, run: "RunFolder", name: str, place: _Place) -> "StageContext | None":
    from launcher import chain

    # What the launcher has checked is not checked again: the others wait for rank 0 here.
    context = chain.enter(job.recipe, run, name, job.replace, _workers())
    if context is None:
        logger.info("%s: done already", name)
        return None
    place.tell_of_stage(name)
    return context


def _workers() -> "Workers":
    import torch

    from engine import distributed
    from launcher.run_folder import Workers

    threads = torch.get_num_threads() if distributed.device().type == "cpu" else None
    return Workers(processes=distributed.world(), threads=threads)


def _run_stage(job: Job, run: "RunFolder", context: "StageContext") -> None:
    from engine import distributed
    from launcher import chain

    try:
        fingerprint = job.recipe.stages[context.name].run(context)
    except Preempted:
        # deepspeed's launcher ends the others when the first one leaves: they must be ready.
        with contextlib.suppress(RuntimeError):
            distributed.barrier()
        raise
    distributed.barrier()
    if distributed.rank() == 0:
        chain.finish(run, context.name, fingerprint)
    # The next stage's inputs are read from what rank 0 has just written.
    distributed.barrier()


def _log_progress(log: RankLog | None, rank: int) -> None:
    """Rank 0's progress and everybody's warnings go to the screen; the rest to the log alone."""
    for name in ("configs", "data_pipeline", "engine", "downstream", "launcher"):
        package = logging.getLogger(name)
        package.handlers[:] = _handlers(log, rank)
        # Fine-tuning spreads its cells over the ranks: each has its own to tell of.
        talks = rank == 0 or name == "downstream"
        package.setLevel(logging.INFO if talks else logging.WARNING)
        package.propagate = False


def _handlers(log: RankLog | None, rank: int) -> list[logging.Handler]:
    """To the launcher, and to the rank's log with the time; by hand to the terminal alone."""
    here = logging.StreamHandler(sys.stderr)
    if log is None:
        here.setFormatter(logging.Formatter(f"{f'rank {rank}: ' if rank else ''}%(message)s"))
        return [here]
    here.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return [ToLauncher(log, rank), here]


if __name__ == "__main__":
    main()
