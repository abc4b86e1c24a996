"""A launch as a deepspeed command line; pure, so that it can be read and tested."""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LaunchError, RecipeError, ResourceError
from launcher.hosts import Host, is_local

_LITERAL = re.compile(r"[\w@%+=:,./-]+")


@dataclass(frozen=True, slots=True)
class Launch:
    """Some stages, run by the same processes one after the other.

    Attributes:
        recipe: the resolved recipe.
        stages: in order.
        port: rank 0 waits for the others there.
        processes: on this machine; not read when ``hosts`` are given.
        gpu_ids: which GPUs of this machine, if CUDA_VISIBLE_DEVICES says so.
        hosts: from the hostfile; empty means this machine.
        hostfile: where their list lies for DeepSpeed.
        folder: where the processes leave word.
        replace: stages that may be made anew if they are another recipe's.
        module: what each rank runs.
        grace: seconds that each rank has to save its state when it is to stop.
        launch_id: what the heartbeat of this launch is known by.
    """

    recipe: Path
    stages: Sequence[str]
    port: int
    folder: Path
    processes: int = 1
    gpu_ids: Sequence[int] | None = None
    hosts: Sequence[Host] = ()
    hostfile: Path | None = None
    replace: Sequence[str] = ()
    module: str = "launcher.worker"
    grace: float = 60.0
    launch_id: str = ""

    @property
    def world(self) -> int:
        """How many processes it has."""
        return sum(host.slots for host in self.hosts) or self.processes


def deepspeed_command(launch: Launch, program: Sequence[str]) -> list[str]:
    """``deepspeed ... --module launcher.worker RECIPE STAGE ...``.

    ``program`` is how deepspeed's launcher is called. RecipeError if a path would be read by a
    remote shell as something else.
    """
    worker = [
        launch.module,
        str(launch.recipe),
        *launch.stages,
        f"--report_to={launch.folder}",
        f"--grace={launch.grace:g}",
        *([f"--launch_id={launch.launch_id}"] if launch.launch_id else ()),
        *(f"--replace={name}" for name in launch.replace),
    ]
    if not is_local(launch.hosts):
        _refuse_shell_characters(worker)
    return [*program, *_placement(launch), f"--master_port={launch.port}", "--module", *worker]


def _placement(launch: Launch) -> list[str]:
    if launch.hosts:
        # Alone on this machine there is no host to ask, and no ssh to ask it with.
        here = ["--no_ssh_check", "--master_addr=127.0.0.1"] if is_local(launch.hosts) else []
        return [f"--hostfile={launch.hostfile}", *here]
    # No file, or deepspeed would take /job/hostfile where there is one.
    nowhere = "--hostfile=/dev/null"
    if launch.gpu_ids is None:
        return [nowhere, f"--num_gpus={launch.processes}"]
    if len(launch.gpu_ids) < launch.processes:
        visible = ",".join(map(str, launch.gpu_ids))
        msg = f"{launch.processes} processes, but CUDA_VISIBLE_DEVICES={visible} shows fewer GPUs"
        raise ResourceError(msg)
    chosen = ",".join(map(str, launch.gpu_ids[: launch.processes]))
    return [nowhere, f"--include=localhost:{chosen}"]


def _refuse_shell_characters(words: Sequence[str]) -> None:
    for word in words:
        if not _LITERAL.fullmatch(word):
            msg = (
                f"'{word}': deepspeed hands this to a shell on the other hosts, which would "
                "change it; on several hosts use only letters, digits and @%+=:,./-_"
            )
            raise RecipeError(msg)


def deepspeed_program(hosts: Sequence[Host]) -> list[str]:
    """How to call deepspeed's launcher of this environment; LaunchError if something is missing."""
    if not is_local(hosts) and shutil.which("pdsh") is None:
        msg = "several hosts need pdsh on this machine (Debian: apt install pdsh)"
        raise LaunchError(msg)
    return [sys.executable, "-m", "deepspeed.launcher.runner"]
