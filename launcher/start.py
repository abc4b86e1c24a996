"""One launch from its start to its end: processes, their output, and what became of them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.errors import BY_NAME, LaunchError, OnwardError, ResourceError
from engine import watchdog
from engine.listening import VARIABLE
from engine.rendezvous import join_seconds
from engine.watchdog import VERDICT
from launcher import agreement, chain, environment, jit, master
from launcher.command import Launch, deepspeed_command, runner
from launcher.exports import format_exports
from launcher.following import Shown, follow
from launcher.heartbeat import end_launch, heard, new_launch_id, silence_seconds
from launcher.hosts import format_hostfile, unreachable
from launcher.interruption import Interrupted
from launcher.outcome import explain, explain_raised, forget_outcomes, read_outcomes
from launcher.placement import Placement, remote_environments
from launcher.processes import Tell, end_group, end_leader, group_members, start_group
from launcher.run_folder import RunFolder, make_folder, write_atomically
from launcher.stragglers import Stragglers
from launcher.watch import STOP

_TO_LEAVE = 5.0
"""Seconds from the end of a worker's grace, or its verdict, to its end."""


def launch_stages(
    run: RunFolder, names: Sequence[str], replace: Sequence[str], placement: Placement, tell: Tell
) -> None:
    """Run stages by one set of processes, one stage after the other.

    Raises:
        OnwardError: what stopped a rank, with its exit code; Preempted if the state was saved.
        Interrupted: a signal came, and the state was not saved; the processes are gone.
    """
    _forget_words(run.launch(names[0]))
    launch = plan_launch(run, names, replace, placement)
    prepared = _prepare(run, launch, placement)
    if launch.is_here and placement.runs == "ranks":
        _warn_of_unusable_gpus(prepared, tell)
        if prepared.get("DS_ACCELERATOR") == "cpu":
            _require_operators(prepared, tell)
    tell(f"{', '.join(names)}: starting {_describe(launch, prepared)}")
    command = deepspeed_command(launch, runner(), placement.environment)
    folder = None if launch.is_here else environment.PROJECT
    silence = silence_seconds(placement.environment)
    shown = Shown(tell, placement.environment, _size(launch), launch.is_here)
    with (
        heard(run.root, launch.folder, launch.launch_id, silence),
        follow(start_group(command, prepared, folder), run, names[0], shown) as followed,
    ):
        process = followed.process
        try:
            code = _wait(process, launch)
        except Interrupted as stop:
            _let_them_save(process, launch, stop, followed.view.say)
            end_launch(launch.folder)
            _end(process, launch, _TO_LEAVE)
            error = explain_raised(read_outcomes(launch.folder)) or stop
            _mark_failed(run, names, error)
            raise error from None
        finally:
            _end(process, launch, 0.0 if _hangs(launch) else launch.grace + _TO_LEAVE)
            _remove_shared_memory(launch.port)
    _judge(run, launch, code, followed.log, placement)


def _forget_words(folder: Path) -> None:
    """Whoever looks for why a launch failed before it began must not find the last one's words."""
    forget_outcomes(folder)
    with contextlib.suppress(OSError):
        agreement.Cards.forget(folder)
        watchdog.forget(folder)


def _remove_shared_memory(port: int | str) -> None:
    """What ranks that were killed in DeepSpeed's start have left in this machine's memory."""
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):
        path.unlink(missing_ok=True)


def _end(process: subprocess.Popen[str], launch: Launch, seconds: float) -> None:
    """All processes of the launch on this machine; ranks elsewhere have been told by a file."""
    if launch.launcher == "pdsh" and process.poll() is None:
        # At a signal it would `pkill` every launch of deepspeed that this user has on the hosts.
        end_leader(process)
    end_group(process, seconds)


def _wait(process: subprocess.Popen[str], launch: Launch) -> int:
    """Until the launch has ended, or its ranks have found that it hangs; its exit code.

    Or until one has failed, and others on other hosts have been left enough time to end.
    """
    stragglers = Stragglers(launch.folder)
    while process.poll() is None:
        if stragglers.are_left():
            end_launch(launch.folder)
            _wait_until(lambda: process.poll() is not None, 2 * _TO_LEAVE)
            break
        if _hangs(launch):
            # deepspeed's launcher would wait half a minute for a rank that is stopped.
            _wait_until(lambda: process.poll() is not None, 2 * _TO_LEAVE)
            break
        time.sleep(0.1)
    return process.returncode or 0


def _hangs(launch: Launch) -> bool:
    return (launch.folder / VERDICT).exists()


def _let_them_save(
    process: subprocess.Popen[str], launch: Launch, stop: Interrupted, tell: Tell
) -> None:
    """Ask all workers by a file, which those on other hosts see, too; wait for their end."""
    name = signal.Signals(stop.number).name
    tell(
        f"{name}: waiting up to {launch.grace:g} s for the state to be saved; "
        f"another {name} ends at once"
    )
    try:
        write_atomically(launch.folder / STOP, name)
    except ResourceError as error:
        tell(f"warning: {error}")
        return
    _wait_until(
        lambda: stop.is_repeated or not group_members(process.pid), launch.grace + _TO_LEAVE
    )


def _wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.1)


def plan_launch(
    run: RunFolder,
    names: Sequence[str],
    replace: Sequence[str],
    placement: Placement,
    *,
    shown_only: bool = False,
) -> Launch:
    """The launch of some stages, with an address and a free port that rank 0's host has told.

    ``shown_only``: no process is started, so that another host is not asked. RecipeError for
    waiting times of the environment that no rank could read.
    """
    silence_seconds(placement.environment)
    join_seconds(placement.environment)
    hosts, launcher = placement.hosts(), placement.chosen_launcher()
    folder = run.launch(names[0])
    listen = placement.environment.get(VARIABLE, "")
    wish = master.Wish(placement.master_addr, placement.port, listen)
    if shown_only:
        address, port = master.shown(hosts, wish)
    else:
        found = master.find(hosts, wish, placement.reach(hosts))
        address, port = found.address, str(found.port)
    return Launch(
        recipe=run.recipe,
        stages=names,
        port=int(port) if port.isdecimal() else port,
        folder=folder,
        processes=placement.processes or environment.default_processes(),
        gpu_ids=environment.visible_gpus(placement.environment) if environment.gpus() else None,
        hosts=hosts,
        hostfile=folder / "hostfile",
        replace=replace,
        module=placement.module,
        grace=placement.grace,
        launch_id=new_launch_id(),
        launcher=launcher,
        launcher_args=placement.launcher_args,
        address=address,
        working=Path.cwd(),
    )


def _prepare(run: RunFolder, launch: Launch, placement: Placement) -> dict[str, str]:
    """A clean launch folder with what the launcher reads; the runner's environment."""
    shutil.rmtree(launch.folder, ignore_errors=True)
    make_folder(launch.folder)
    for name in launch.stages:
        (run.stage(name) / "launcher.log").unlink(missing_ok=True)
    agreement.write_places(launch.folder, launch.hosts)
    if launch.hosts:
        write_atomically(launch.folder / "hostfile", format_hostfile(launch.hosts))
    passed, prepared = environments(launch, placement)
    if not launch.is_here:
        write_atomically(launch.folder / "environment", format_exports(passed))
    return prepared


def _describe(launch: Launch, prepared: Mapping[str, str]) -> str:
    """``2 processes on the CPU``; other hosts find out themselves what they have."""
    count = f"{launch.world} process{'' if launch.world == 1 else 'es'}"
    if launch.is_here:
        return f"{count} on {environment.device_name(prepared, launch.world)}"
    return f"{count} on {', '.join(f'{host.name} ({host.slots})' for host in launch.hosts)}"


def _size(launch: Launch) -> str:
    """``2 hosts, 16 ranks``; nothing for a single rank."""
    if launch.world == 1:
        return ""
    hosts = "" if launch.is_here else f"{len(launch.hosts)} hosts, "
    return f"{hosts}{launch.world} ranks"


def _warn_of_unusable_gpus(prepared: Mapping[str, str], tell: Tell) -> None:
    trouble = environment.unusable_gpus(prepared)
    if trouble:
        tell(f"warning: this machine has GPUs that torch cannot use, so the CPU is: {trouble}")


def environments(launch: Launch, placement: Placement) -> tuple[dict[str, str], dict[str, str]]:
    """What is passed on to the hosts, and what deepspeed's runner itself gets.

    On this machine alone workers inherit the user's whole environment: nothing crosses a command
    line, and nothing is passed on. Otherwise both are made from lists.
    """
    given = placement.environment
    if not launch.is_here:
        return remote_environments(launch, given, placement.exports())
    here = launch.processes
    if launch.hosts:
        here = max(host.slots for host in launch.hosts)
    made = environment.worker_environment(given, here, environment.gpus(), environment.cores())
    if launch.gpu_ids is not None:
        # The command names them; deepspeed refuses to be told twice.
        del made["CUDA_VISIBLE_DEVICES"]
    made["ONWARD_STDIN"] = "held"
    return {}, made


def _require_operators(prepared: dict[str, str], tell: Tell) -> None:
    """Built, and no stale lock in the way of loading them."""
    folder = environment.extensions_folder(prepared)
    jit.refuse_stale_locks(folder)
    if jit.is_built(folder):
        return
    tell("building DeepSpeed's operator for the CPU; once, 1-2 minutes")
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher.jit"],
        env=prepared,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate()
    finally:
        end_group(process, grace=1.0)
    if process.returncode != 0:
        kinds = {kind.exit_code: kind for kind in BY_NAME.values()}
        kind = kinds.get(process.returncode, OnwardError)
        raise kind(said.strip().removeprefix("error: "))


def _judge(run: RunFolder, launch: Launch, code: int, log: Path, placement: Placement) -> None:
    """Raise what went wrong, if anything did; deepspeed's exit code alone does not tell."""
    undone = [name for name in launch.stages if not _is_done(run, name)]
    if not undone:
        return
    told = explain(read_outcomes(launch.folder), launch.world, code, log)
    error = _with_lost_hosts(told, placement)
    _mark_failed(run, undone, error)
    raise error


def _with_lost_hosts(
    error: OnwardError | Interrupted, placement: Placement
) -> OnwardError | Interrupted:
    """Ranks see a silence; whose host cannot be reached any more is found out from here."""
    if not isinstance(error, LaunchError):
        return error
    absent = unreachable(placement.entered_by_ssh())
    lost = [f"{name} cannot be reached: {why}" for name, why in absent.items()]
    return LaunchError("\n".join([*lost, str(error)]), error.cause) if lost else error


def _is_done(run: RunFolder, name: str) -> bool:
    status = run.status(name)
    return status is not None and status.state == "done"


def _mark_failed(run: RunFolder, names: Sequence[str], error: BaseException) -> None:
    for name in names:
        chain.fail(run, name, error)
