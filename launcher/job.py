"""What one rank is asked to do: the command line of ``launcher.worker``, and what came with it."""

import argparse
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import LaunchError, OnwardError, RecipeError
from configs.permissions import apply_umask
from configs.stop import StopRequest
from configs.yaml_source import nearest
from launcher import agreement, environment, exports, ranks, spelling

if TYPE_CHECKING:
    from launcher.links import ChainRecipe

Load = Callable[[Path], "ChainRecipe"]
GRACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What one rank is asked to do.

    Attributes:
        folder: where to leave word for the launcher; None if started by hand.
        replace: stages that may be made anew if the run folder has them from another recipe.
        grace: seconds for saving, once it was asked to stop.
        stop: what this process has been asked.
        launch_id: the launcher's name for this launch; None: it counts no heartbeat.
    """

    recipe: "ChainRecipe"
    stages: Sequence[str]
    folder: Path | None
    replace: frozenset[str]
    grace: float = GRACE_SECONDS
    stop: StopRequest = field(default_factory=StopRequest)
    launch_id: str | None = None


def job_of(arguments: Sequence[str], load: Load) -> Job:
    """The job, in the environment that its process needs; SystemExit with the code of an error.

    ``load`` reads the recipe.
    """
    given = _arrive(arguments)
    processes = int(os.environ.get("LOCAL_SIZE", "1"))
    # Before torch and numpy are imported: they read OMP_NUM_THREADS once.
    made = environment.worker_environment(
        os.environ, processes, environment.has_gpus(), environment.cores()
    )
    os.environ.update(made)
    try:
        if given.launch_id:
            agreement.require_seen(given.report_to)
        recipe = load(given.recipe)
        _require_launched(recipe, given.stages)
    except OnwardError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    replaceable, grace, launch_id = frozenset(given.replace), given.grace, given.launch_id
    return Job(recipe, given.stages, given.report_to, replaceable, grace, launch_id=launch_id)


def _arrive(arguments: Sequence[str]) -> argparse.Namespace:
    """Take over what came with the launch, from whichever launcher, before anybody reads it."""
    try:
        given = _parse(spelling.read_if_spelled(arguments))
        os.environ.update(exports.unpacked(os.environ))
        # A shell on another host has an umask of its own.
        apply_umask()
        ranks.settle(os.environ)
        if given.folder:
            os.chdir(given.folder)
    except OnwardError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        where = f"{socket.gethostname()}: {given.folder}: {error.strerror}"
        sys.stderr.write(
            f"error: {where}; all hosts need the same folders (a shared file system)\n"
        )
        raise SystemExit(LaunchError.exit_code) from None
    return given


def load_recipe(path: Path) -> "ChainRecipe":
    """``launcher.recipe.load_recipe``, which imports what a recipe may hold."""
    from launcher import recipe

    return recipe.load_recipe(path)


def _require_launched(recipe: "ChainRecipe", names: Sequence[str]) -> None:
    for name in names:
        if name not in recipe.stages:
            msg = f"no stage '{name}' in this recipe; {nearest(name, recipe.stages)}"
            raise RecipeError(msg)
        if recipe.stages[name].RUNS == "once":
            msg = f"stage {name} runs in one process: onward run RECIPE {name}"
            raise RecipeError(msg)
    if len({recipe.stages[name].RUNS for name in names}) > 1:
        msg = f"{', '.join(names)}: some run on hosts, some on ranks; give those of one kind"
        raise RecipeError(msg)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deepspeed [--hostfile HOSTS] --module launcher.worker",
        description="Run stages of a recipe on this rank. The stages before them must be done.",
        epilog="Example: deepspeed --num_gpus 2 --module launcher.worker runs/q/recipe.yaml dapt",
    )
    parser.add_argument("recipe", type=Path, help="the recipe, such as RUN/recipe.yaml")
    parser.add_argument("stages", nargs="+", metavar="STAGE", help="in the recipe's order")
    # Not --launch: deepspeed's own parser would take that for the beginning of its --launcher.
    parser.add_argument("--report_to", type=Path, help="folder to leave word in for the launcher")
    parser.add_argument("--launch_id", help="the launcher's name for this launch")
    parser.add_argument("--folder", type=Path, help="that relative paths are meant from")
    parser.add_argument("--replace", action="append", default=[], metavar="STAGE")
    grace = os.environ.get("ONWARD_GRACE", str(GRACE_SECONDS))
    parser.add_argument("--grace", type=_seconds, default=grace, help="for saving at a stop")
    parser.add_argument("--local_rank", type=int, help="given by deepspeed; the environment rules")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    """Of a grace; ``nan`` would have no end."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        msg = f"{text}: expected seconds, more than none"
        raise argparse.ArgumentTypeError(msg)
    return seconds
