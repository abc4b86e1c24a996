"""The verb that looks before a run: doctor."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.verbs.answers import answer
from launcher.verbs.app import app
from launcher.verbs.options import (
    Exclude,
    Hostfile,
    Include,
    Json,
    MasterAddress,
    MasterPort,
    Processes,
)


@app.command(
    short_help="Tell beforehand whether a run would start here.",
    epilog="Example: onward doctor --hostfile hosts --run my.yaml",
)
def doctor(  # noqa: PLR0913, PLR0917 -- the options of a command line
    hostfile: Hostfile = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE|FOLDER",
            help="Look at this run's folder, and at what its recipe needs. Default: this folder.",
        ),
    ] = None,
    launcher: Annotated[
        Literal["pdsh", "openmpi", "slurm"], typer.Option(help="What will start the processes.")
    ] = "pdsh",
    processes: Processes = None,
    include: Include = "",
    exclude: Exclude = "",
    master_addr: MasterAddress = "",
    master_port: MasterPort = None,
    no_collectives: Annotated[  # noqa: FBT002 -- typer's way of declaring a flag
        bool, typer.Option("--no-collectives", help="Leave out the timed all-reduces.")
    ] = False,
    as_json: Json = False,  # noqa: FBT002 -- as above
) -> None:
    """Look at the machines of a run, and tell what would make it fail, where, and what to do.

    Without a hostfile: this machine. Nothing is changed; files written to try the disk are
    removed. The exit code is 1 if the run would fail; warnings alone leave it 0.
    """
    from launcher.doctor.examine import Order, examine
    from launcher.doctor.text import lines

    order = Order(
        hostfile,
        run,
        launcher,
        master_port,
        not no_collectives,
        address=master_addr,
        include=include,
        exclude=exclude,
        processes=processes,
    )
    found = examine(order)
    if as_json:
        answer(found.as_json(), as_json)
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(found))
    if not found.is_ready:
        raise typer.Exit(1)
