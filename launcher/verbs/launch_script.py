"""The verb that writes a batch file: launch-script."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from configs.errors import RecipeError
from launcher.verbs.answers import tell
from launcher.verbs.app import app
from launcher.verbs.options import RecipeFile, Words, numbered


@app.command(
    "launch-script",
    short_help="Write a batch file for Slurm, with requeueing.",
    epilog="Example: onward launch-script my.yaml --nodes 2 --tasks-per-node 8 "
    "--gpus-per-node 8 --time 12:00:00 --output job.sbatch",
)
def launch_script(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts.")],
    tasks_per_node: Annotated[int, typer.Option(min=1, help="Ranks on each of them.")],
    words: Words = None,
    scheduler: Annotated[Literal["slurm"], typer.Option(help="Whose batch file.")] = "slurm",
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs of each host. Default: none are asked for.")
    ] = None,
    time: Annotated[
        str, typer.Option(metavar="[D-]HH:MM:SS", help="How long the job may run.")
    ] = "",
    partition: Annotated[str, typer.Option(help="As sbatch has it.")] = "",
    account: Annotated[str, typer.Option(help="As sbatch has it.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY[=VALUE]", help="Further options of sbatch."),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            min=1.0,
            callback=numbered,
            metavar="SECONDS",
            help="How long ranks may take to save before the end.",
        ),
    ] = 120.0,
    container: Annotated[
        str,
        typer.Option(
            metavar="IMAGE", help="Run in it: a .sif file by Apptainer, others by enroot and pyxis."
        ),
    ] = "",
    output: Annotated[Path | None, typer.Option(help="The file. Default: stdout.")] = None,
) -> None:
    """Write a batch file that runs a recipe's stages under Slurm until they are done.

    Before its time is over the run saves its state and the job is requeued; it goes on after a
    lost host, too. A job that twice makes no progress is not requeued.
    """
    from launcher.batch_script import Job, batch_script, chosen_stages, parse_settings
    from launcher.recipe import check_world, load_recipe

    del scheduler  # there is one so far
    given = list(words or [])
    loaded = load_recipe(recipe, [word for word in given if "=" in word])
    names = chosen_stages(loaded, [word for word in given if "=" not in word])
    launched = [name for name in names if loaded.stages[name].RUNS == "ranks"]
    check_world(loaded, launched, nodes * tasks_per_node)
    text = batch_script(
        Job(
            recipe,
            loaded,
            given,
            names,
            nodes,
            tasks_per_node,
            time=time,
            partition=partition,
            account=account,
            gpus_per_node=gpus_per_node,
            grace=grace,
            settings=parse_settings(settings or []),
            container=container,
        )
    )
    if output is None:
        sys.stdout.write(text)
        return
    _write(output, text)
    tell(f"written: {output}; submit it with: sbatch {shlex.quote(str(output))}")


def _write(path: Path, text: str) -> None:
    """Over an older one of ours alone."""
    from launcher.batch_script import FIRST_LINES
    from launcher.run_folder import write_atomically

    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(
        FIRST_LINES
    ):
        msg = f"--output {path}: is there, and no batch file of Onward; give another name"
        raise RecipeError(msg)
    if not path.parent.is_dir():
        msg = f"--output {path}: there is no folder {path.parent}; make it, or name another"
        raise RecipeError(msg)
    write_atomically(path, text)
