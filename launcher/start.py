"""One launch from its start to its end: processes, their output, and what became of them."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import BY_NAME, OnwardError, ResourceError
from configs.stage import Runs
from engine.watchdog import VERDICT
from launcher import agreement, chain, environment, jit, ports
from launcher.command import Launch, deepspeed_command, deepspeed_program
from launcher.exports import exports, format_exports, own_files
from launcher.following import Shown, follow
from launcher.heartbeat import end_launch, heard, new_launch_id, silence_seconds
from launcher.hosts import Host, format_hostfile, is_local, one_a_host, read_hostfile
from launcher.interruption import Interrupted
from launcher.outcome import explain, explain_raised, read_outcomes
from launcher.processes import Tell, end_group, group_members, start_group
from launcher.run_folder import RunFolder, make_folder, write_atomically
from launcher.watch import STOP
from launcher.worker import GRACE_SECONDS

_TO_LEAVE = 5.0
"""Seconds from the end of a worker's grace, or its verdict, to its end."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where launched stages run.

    Attributes:
        processes: on this machine; None: one a GPU, or two without.
        hostfile: the machines instead.
        port: rank 0 waits for the others there; None: a free one.
        module: what each rank runs.
        grace: seconds that ranks have to save their state when they are to stop.
        runs: ``hosts``: one process on each machine, whatever its slots, and none needs torch.
        environment: the user's. What this program sets in its own is not for other hosts: they
            find out themselves what they have.
        left_out: names of the hostfile's machines that nothing is to run on.
    """

    processes: int | None = None
    hostfile: Path | None = None
    port: int | None = None
    module: str = "launcher.worker"
    grace: float = GRACE_SECONDS
    runs: Runs = "ranks"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    left_out: frozenset[str] = frozenset()

    def hosts(self) -> tuple[Host, ...]:
        """The hostfile's machines, none without one; RecipeError lists its bad lines."""
        named = read_hostfile(self.hostfile) if self.hostfile else ()
        found = tuple(host for host in named if host.name not in self.left_out)
        return one_a_host(found) if self.runs == "hosts" else found

    def without(self, names: Iterable[str]) -> "Placement":
        """The same, without these of the hostfile's machines."""
        return dataclasses.replace(self, left_out=frozenset(names))

    def for_stage(self, runs: Runs) -> "Placement":
        """The same, for a stage that runs so."""
        return dataclasses.replace(self, runs=runs)

    def world(self) -> int:
        """How many ranks a launch has."""
        here = self.processes or environment.default_processes()
        return sum(host.slots for host in self.hosts()) or here

    def threads(self) -> int | None:
        """Of each process; None if every host shares out its own cores."""
        if is_local(self.hosts()):
            given = environment.threads(self.environment)
            return given or environment.shared_cores(self.world(), environment.cores())
        return environment.threads(exports(self.environment, own_files(self.environment)))


def launch_stages(
    run: RunFolder, names: Sequence[str], replace: Sequence[str], placement: Placement, tell: Tell
) -> None:
    """Run stages by one set of processes, one stage after the other.

    Raises:
        OnwardError: what stopped a rank, with its exit code; Preempted if the state was saved.
        Interrupted: a signal came, and the state was not saved; the processes are gone.
    """
    launch = _prepare(run, names, replace, placement)
    prepared = _environment(launch, placement.environment)
    if is_local(launch.hosts) and placement.runs == "ranks":
        _warn_of_unusable_gpus(prepared, tell)
        if prepared.get("DS_ACCELERATOR") == "cpu":
            _require_operators(prepared, tell)
    tell(f"{', '.join(names)}: starting {_describe(launch, prepared)}")
    command = deepspeed_command(launch, deepspeed_program(launch.hosts))
    silence = silence_seconds(placement.environment)
    shown = Shown(tell, placement.environment, _size(launch), is_local(launch.hosts))
    with (
        heard(run.root, launch.folder, launch.launch_id, silence),
        follow(start_group(command, prepared), run, names[0], shown) as followed,
    ):
        process = followed.process
        try:
            code = _wait(process, launch)
        except Interrupted as stop:
            _let_them_save(process, launch, stop, followed.view.say)
            end_launch(launch.folder)
            end_group(process, _TO_LEAVE)
            error = explain_raised(read_outcomes(launch.folder)) or stop
            _mark_failed(run, names, error)
            raise error from None
        finally:
            end_group(process, 0.0 if _hangs(launch) else launch.grace + _TO_LEAVE)
            _remove_shared_memory(launch.port)
    _judge(run, launch, code, followed.log)


def _remove_shared_memory(port: int) -> None:
    """What ranks that were killed in DeepSpeed's start have left in this machine's memory."""
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):
        path.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[str], launch: Launch) -> int:
    """Until the launch has ended, or its ranks have found that it hangs; its exit code."""
    while process.poll() is None:
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


def _prepare(
    run: RunFolder, names: Sequence[str], replace: Sequence[str], placement: Placement
) -> Launch:
    folder = run.launch(names[0])
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    for name in names:
        (run.stage(name) / "launcher.log").unlink(missing_ok=True)
    hosts = placement.hosts()
    agreement.write_places(folder, hosts)
    if hosts:
        write_atomically(folder / "hostfile", format_hostfile(hosts))
    return Launch(
        recipe=run.recipe,
        stages=names,
        port=ports.require_free(placement.port) if placement.port else ports.free_port(),
        folder=folder,
        processes=placement.processes or environment.default_processes(),
        gpu_ids=environment.visible_gpus(placement.environment) if environment.gpus() else None,
        hosts=hosts,
        hostfile=folder / "hostfile",
        replace=replace,
        module=placement.module,
        grace=placement.grace,
        launch_id=new_launch_id(),
    )


def _describe(launch: Launch, prepared: Mapping[str, str]) -> str:
    """``2 processes on the CPU``; other hosts find out themselves what they have."""
    count = f"{launch.world} process{'' if launch.world == 1 else 'es'}"
    if is_local(launch.hosts):
        return f"{count} on {environment.device_name(prepared, launch.world)}"
    return f"{count} on {', '.join(f'{host.name} ({host.slots})' for host in launch.hosts)}"


def _size(launch: Launch) -> str:
    """``2 hosts, 16 ranks``; nothing for a single rank."""
    if launch.world == 1:
        return ""
    hosts = "" if is_local(launch.hosts) else f"{len(launch.hosts)} hosts, "
    return f"{hosts}{launch.world} ranks"


def _warn_of_unusable_gpus(prepared: Mapping[str, str], tell: Tell) -> None:
    trouble = environment.unusable_gpus(prepared)
    if trouble:
        tell(f"warning: this machine has GPUs that torch cannot use, so the CPU is: {trouble}")


def _environment(launch: Launch, given: Mapping[str, str]) -> dict[str, str]:
    here = launch.processes
    if launch.hosts:
        here = max((host.slots for host in launch.hosts if host.is_here), default=1)
    made = environment.worker_environment(given, here, environment.gpus(), environment.cores())
    if launch.gpu_ids is not None:
        # The command names them; deepspeed refuses to be told twice.
        del made["CUDA_VISIBLE_DEVICES"]
    if is_local(launch.hosts):
        made["ONWARD_STDIN"] = "held"
        return made
    file = launch.folder / "environment"
    write_atomically(file, format_exports(exports(given, own_files(given))))
    made["DS_ENV_FILE"] = str(file)
    return made


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


def _judge(run: RunFolder, launch: Launch, code: int, log: Path) -> None:
    """Raise what went wrong, if anything did; deepspeed's exit code alone does not tell."""
    undone = [name for name in launch.stages if not _is_done(run, name)]
    if not undone:
        return
    outcomes = read_outcomes(launch.folder)
    error = explain(outcomes, launch.world, code, log)
    _mark_failed(run, undone, error)
    raise error


def _is_done(run: RunFolder, name: str) -> bool:
    status = run.status(name)
    return status is not None and status.state == "done"


def _mark_failed(run: RunFolder, names: Sequence[str], error: BaseException) -> None:
    for name in names:
        chain.fail(run, name, error)
