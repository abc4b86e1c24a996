"""The verb that tells what a recipe needs."""

import sys
from typing import Annotated

import typer

from launcher.verbs.answers import answer
from launcher.verbs.app import app
from launcher.verbs.options import Json, RecipeFile


@app.command(
    short_help="Tell what a recipe needs: memory, tokens, disk.",
    epilog="Example: onward plan my.yaml dapt --hosts 2 --gpus-per-host 8 --device h100",
)
def plan(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STAGE|KEY=VALUE",
            help="Pretraining stages (none: all), and settings such as stages.base.steps=200.",
        ),
    ] = None,
    hosts: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_host: Annotated[int, typer.Option(min=1, help="Ranks on each of them.")] = 1,
    device: Annotated[
        str, typer.Option(help="h100, h200, a100-40, a100-80, l40s, rtx4090, or cpu: this machine.")
    ] = "h100",
    host_memory: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GIB", help="Of a host; its ranks share it."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="TFLOPS",
            help="TFLOP/s of model FLOPs that a rank reaches over whole steps (recomputing not "
            "counted): tflops of a one-rank run's metrics. Communication is added.",
        ),
    ] = None,
    link: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GBIT", help="Gbit/s of a host to the others."),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(min=0, metavar="MICROSECONDS", help="Between two hosts."),
    ] = None,
    scale: Annotated[  # noqa: FBT002 -- typer's way of declaring a flag
        bool, typer.Option("--scale", help="Also over 1, 2, 4, ... ranks; simulated.")
    ] = False,
    as_json: Json = False,  # noqa: FBT002 -- as above
) -> None:
    """Tell what each pretraining stage will need: memory, communication, time, disk.

    By arithmetic from the recipe; nothing is built, and no GPU is needed. Memory is told between
    steps, in a pass and in the update; sends is what a rank sends in a step; `<` marks
    what the stage will run with. The exit code is 7 if a stage does not fit.
    """
    from configs.devices import find_device
    from engine.choosing import FRAGMENTED, RESERVED, gib
    from launcher.plan_text import plan_lines
    from launcher.plan_times import Cluster
    from launcher.planning import plan as plan_stages
    from launcher.recipe import load_recipe

    settings = [word for word in words or [] if "=" in word]
    loaded = load_recipe(recipe, settings)
    cluster = Cluster(
        hosts,
        gpus_per_host,
        find_device(device, gpus_per_host, host_memory),
        None if rate is None else rate * 1e12,
        None if link is None else link * 1e9 / 8,
        None if latency is None else latency * 1e-6,
    )
    names = [word for word in words or [] if "=" not in word]
    made = plan_stages(loaded, names, cluster, is_scaled=scale)
    if as_json:
        told = {"cluster": str(cluster), "ranks": cluster.world, "stages": made.stages}
        answer(told | {"errors": [str(error) for error in made.errors]}, as_json)
        if made.errors:
            raise typer.Exit(made.errors[0].exit_code)
        return
    margin = (
        f"of each {gib(cluster.device.memory)} GiB, {gib(RESERVED)} GiB is left to the driver and "
        f"{FRAGMENTED:.0%} of the rest to gaps between blocks"
    )
    lines = plan_lines(made.stages, str(cluster), margin)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if made.errors:
        sys.stdout.flush()
        raise made.errors[0]
