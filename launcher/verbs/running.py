"""Verbs that run stages: quickstart, check, run."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.errors import RecipeError
from launcher.verbs.answers import answer, stdout_kept_clean, tell
from launcher.verbs.app import app
from launcher.verbs.options import (
    DryRun,
    Exclude,
    Grace,
    Hostfile,
    Include,
    Json,
    LauncherArgs,
    LauncherName,
    MasterAddress,
    MasterPort,
    MinHosts,
    Passed,
    Patience,
    Processes,
    RecipeFile,
    Redo,
    Restarts,
    Supervise,
    Words,
)

if TYPE_CHECKING:
    from launcher.conduct import Conductor
    from launcher.policy import Policy
    from launcher.recipe import Recipe


@app.command(
    short_help="Run the whole chain on text that is here already.",
    epilog="Example: onward quickstart --output runs/first",
)
def quickstart(
    words: Words = None,
    output: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine. Default: at most 2.")
    ] = None,
    redo: Redo = None,
    grace: Grace = 60.0,
) -> None:
    """Run the whole chain on text that is on this machine already, to a report.

    The same as `onward run` with the quickstart recipe. Minutes on two CPU cores, no download.
    Run again to go on after an interruption; finished stages are skipped.
    """
    from launcher.environment import default_processes
    from launcher.recipe import RECIPES

    settings = [*(words or []), *([f"output={json.dumps(str(output))}"] if output else [])]
    # Its batch is small: more than two processes may not divide it, and would gain nothing.
    processes = processes or min(2, default_processes())
    conductor = make_conductor(
        RECIPES / "quickstart.yaml", settings, processes, redo=redo, grace=grace
    )
    with stdout_kept_clean():
        conductor.run()
    page = conductor.folder.stage("report") / "index.html"
    tell(f"report: {page}" if page.exists() else f"done: {conductor.folder.root}")


@app.command(
    short_help="Check a recipe and its data, running nothing.",
    epilog="Example: onward check my.yaml stages.base.steps=200",
)
def check(
    recipe: RecipeFile,
    words: Words = None,
    processes: Processes = None,
    hostfile: Hostfile = None,
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Check a recipe, its data and its run folder against one another, running nothing."""
    conductor = make_conductor(recipe, words, processes, hostfile=hostfile)
    with stdout_kept_clean():
        names = conductor.check()
    found = _warnings(conductor)
    answer(standings(conductor, names) | ({"warnings": found} if found else {}), as_json)


@app.command(
    short_help="Run a recipe's stages; go on where it stopped.",
    epilog="Example: onward run my.yaml dapt tapt --processes 2 stages.dapt.steps=500",
)
def run(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    words: Words = None,
    processes: Processes = None,
    hostfile: Hostfile = None,
    launcher: LauncherName = "",
    launcher_args: LauncherArgs = "",
    include: Include = "",
    exclude: Exclude = "",
    master_addr: MasterAddress = "",
    master_port: MasterPort = None,
    env: Passed = None,
    redo: Redo = None,
    grace: Grace = 60.0,
    supervise: Supervise = False,  # noqa: FBT002 -- typer's way of declaring a flag
    restarts: Restarts = None,
    min_hosts: MinHosts = None,
    patience: Patience = None,
    dry_run: DryRun = False,  # noqa: FBT002 -- as above
    as_json: Json = False,  # noqa: FBT002 -- as above
) -> None:
    """Run a recipe's stages in order; finished ones are skipped, an interrupted one goes on.

    A signal (SIGTERM, SIGUSR1, Ctrl-C, a closed terminal) makes a training stage save its state and
    ends the run with exit code 75; a second one, some seconds later, ends it at once. Run again to
    go on.

    With --supervise it is started again after lost processes and hosts, hangs, full disks and
    unforeseen errors, but not after errors of the recipe, the data or the numbers.
    """
    policy = _policy(restarts, min_hosts, patience, supervise=supervise)
    conductor = make_conductor(
        recipe,
        words,
        processes,
        hostfile=hostfile,
        launcher=launcher,
        launcher_args=launcher_args,
        include=include,
        exclude=exclude,
        master_addr=master_addr,
        port=master_port,
        passed=tuple(env or ()),
        redo=redo,
        grace=grace,
    )
    conductor = dataclasses.replace(conductor, policy=policy)
    if dry_run:
        _rehearse(conductor, as_json)
        return
    with stdout_kept_clean():
        conductor.run()
    if as_json:
        answer(standings(conductor, list(conductor.recipe.stages)), as_json)
    else:
        tell(f"done: {conductor.folder.root}")


def _policy(
    restarts: int | None, min_hosts: int | None, patience: float | None, *, supervise: bool
) -> "Policy | None":
    from launcher.policy import Policy

    asked = {"restarts": restarts, "min_hosts": min_hosts, "patience": patience}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if given and not supervise:
        option = "--" + next(iter(given)).replace("_", "-")
        msg = f"{option} goes with --supervise"
        raise RecipeError(msg)
    return Policy(**given) if supervise else None


def _rehearse(conductor: "Conductor", as_json: bool) -> None:  # noqa: FBT001 -- from typer's flag
    from launcher.dry_run import lines, rehearse

    with stdout_kept_clean():
        told = rehearse(conductor)
    if as_json:
        answer(told, as_json)
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(told))


def make_conductor(
    path: Path,
    words: list[str] | None,
    processes: int | None,
    *,
    redo: list[str] | None = None,
    **placed: Any,
) -> "Conductor":
    """What runs the recipe's stages as the command line says; RecipeError.

    ``placed``: further facts of ``launcher.placement.Placement``.
    """
    from launcher.chain import Request
    from launcher.conduct import Conductor
    from launcher.placement import Placement
    from launcher.recipe import check_world, load_recipe

    settings = [word for word in words or [] if "=" in word]
    stages = tuple(word for word in words or [] if "=" not in word)
    # Before the recipe, whose environment this program may add to.
    placement = Placement(processes, **placed)
    recipe: Recipe = load_recipe(path, settings)
    return Conductor(
        recipe,
        Request(stages, frozenset(redo or [])),
        placement,
        tell,
        lambda names, world: check_world(recipe, names, world),
    )


def _warnings(conductor: "Conductor") -> list[str]:
    """What is no error, but may spoil the results."""
    from launcher.leakage import leaks

    found = leaks(conductor.recipe.stages)
    told = [f"{'.'.join(map(str, problem.keys))}: {problem.message}" for problem in found]
    return told + _trusted(conductor)


def _trusted(conductor: "Conductor") -> list[str]:
    """Stages that run code which came with a model."""
    models = {name: getattr(s, "model", None) for name, s in conductor.recipe.stages.items()}
    return [
        f"stages.{name}.model.trust_remote_code: runs the code that comes with {model.location}, "
        f"as it is at {model.revision}; make sure that somebody has read it"
        for name, model in models.items()
        if model is not None and getattr(model, "trust_remote_code", False)
    ]


def standings(conductor: "Conductor", names: list[str]) -> dict[str, Any]:
    """Where each of the stages stands, for an answer."""
    from launcher.chain import survey

    found = survey(conductor.recipe, conductor.folder)
    return {
        "recipe": conductor.recipe.name,
        "run": str(conductor.folder.root),
        "stages": {name: found[name].state for name in names},
    }
