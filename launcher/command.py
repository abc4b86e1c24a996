"""A launch as a deepspeed command line; pure, so that it can be read and tested."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RecipeError, ResourceError
from launcher import spelling
from launcher.environment import PROJECT
from launcher.filters import format_filter
from launcher.hosts import Host
from launcher.launchers import LAUNCHERS


@dataclass(frozen=True, slots=True)
class Launch:
    """Some stages, run by the same processes one after the other.

    Attributes:
        recipe: the resolved recipe.
        stages: in order.
        port: rank 0 waits for the others there.
        processes: on this machine; not read when ``hosts`` are given.
        gpu_ids: which GPUs of this machine, if CUDA_VISIBLE_DEVICES says so.
        hosts: as they are numbered; empty means this machine.
        hostfile: where their list lies for DeepSpeed.
        folder: where the processes leave word.
        replace: stages that may be made anew if they are another recipe's.
        module: what each rank runs.
        grace: seconds that each rank has to save its state when it is to stop.
        launch_id: what the heartbeat of this launch is known by.
        launcher: which one starts them; empty: deepspeed's runner itself, on this machine.
        launcher_args: further words for it, as a shell would split them.
        address: rank 0's, as the other hosts reach it.
        working: the folder that relative paths are meant from.
    """

    recipe: Path
    stages: Sequence[str]
    port: int | str
    folder: Path
    processes: int = 1
    gpu_ids: Sequence[int] | None = None
    hosts: Sequence[Host] = ()
    hostfile: Path | None = None
    replace: Sequence[str] = ()
    module: str = "launcher.worker"
    grace: float = 60.0
    launch_id: str = ""
    launcher: str = ""
    launcher_args: str = ""
    address: str = "127.0.0.1"
    working: Path = Path("/")

    @property
    def world(self) -> int:
        """How many processes it has."""
        return sum(host.slots for host in self.hosts) or self.processes

    @property
    def is_here(self) -> bool:
        """Whether its processes are this program's own, on this machine."""
        return not self.launcher


def runner() -> list[str]:
    """How to call deepspeed's launcher of this environment."""
    return [sys.executable, "-m", "deepspeed.launcher.runner"]


def deepspeed_command(
    launch: Launch, program: Sequence[str], environment: Mapping[str, str] | None = None
) -> list[str]:
    """``deepspeed ... --module launcher.worker RECIPE STAGE ...``.

    ``program`` is how deepspeed's launcher is called; ``environment`` the user's. RecipeError if
    something cannot be honoured, or would be read by a remote shell as something else.
    """
    worker = [
        str(launch.recipe),
        *launch.stages,
        f"--report_to={launch.folder}",
        f"--grace={launch.grace:g}",
        *([f"--launch_id={launch.launch_id}"] if launch.launch_id else ()),
        *(f"--replace={name}" for name in launch.replace),
    ]
    port = f"--master_port={launch.port}"
    if launch.is_here:
        return [*program, *_placement(launch), port, "--module", launch.module, *worker]
    for path in (sys.executable, str(PROJECT)):
        _refuse_special_characters(path)
    launcher = LAUNCHERS[launch.launcher]
    worker.append(f"--folder={launch.working}")
    return [
        *program,
        f"--hostfile={launch.hostfile}",
        f"--launcher={launch.launcher}",
        *launcher.placement(launch, environment or {}),
        # They have all been tried, and asked for the address.
        "--no_ssh_check",
        f"--master_addr={launch.address}",
        port,
        *launcher.program(launch),
        *spelling.spell_if_needed(worker),
    ]


def _placement(launch: Launch) -> list[str]:
    if launch.hosts:
        # Alone on this machine there is no host to ask, and no ssh to ask it with.
        here = ["--no_ssh_check", "--master_addr=127.0.0.1"]
        chosen = format_filter(launch.hosts)
        return [
            f"--hostfile={launch.hostfile}",
            *([f"--include={chosen}"] if chosen else []),
            *here,
        ]
    # No file, or deepspeed would take /job/hostfile where there is one.
    nowhere = "--hostfile=/dev/null"
    if launch.gpu_ids is None:
        return [nowhere, f"--num_gpus={launch.processes}"]
    if len(launch.gpu_ids) < launch.processes:
        visible = ",".join(map(str, launch.gpu_ids))
        msg = f"{launch.processes} processes, but CUDA_VISIBLE_DEVICES={visible} shows fewer GPUs"
        raise ResourceError(msg)
    ids = ",".join(map(str, launch.gpu_ids[: launch.processes]))
    return [nowhere, f"--include=localhost:{ids}"]


def _refuse_special_characters(path: str) -> None:
    if not spelling.is_plain(path):
        msg = (
            f"{path}: Onward and its Python are called by this path on the other hosts, whose "
            "shells would change it; install them below a path of letters, digits and _./:=-"
        )
        raise RecipeError(msg)
