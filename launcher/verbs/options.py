"""Arguments and options that several verbs take."""

import math
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STAGE|KEY=VALUE",
        help="Stages to run (none: all), and settings such as stages.base.steps=200.",
    ),
]
RunFolderPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout.")]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Processes on this machine. Default: one a GPU; 2 without GPUs."),
]
Hostfile = Annotated[
    Path | None, typer.Option(help="Run on these machines: lines of 'NAME slots=N'.")
]
MasterPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port of rank 0. Default: a free one.")
]
MasterAddress = Annotated[
    str,
    typer.Option(
        "--master-addr",
        metavar="ADDRESS",
        help="Rank 0's address. Default: the first host's own on the way to the second.",
    ),
]
LauncherName = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="pdsh|openmpi|slurm",
        help="What starts the processes. Default: pdsh, or nothing if all is on this machine. "
        "slurm needs no hostfile.",
    ),
]
LauncherArgs = Annotated[
    str,
    typer.Option(
        metavar="WORDS", help="Further words for pdsh, mpirun or srun, as a shell would split them."
    ),
]
Include = Annotated[
    str,
    typer.Option(
        metavar="NAME[:SLOT,...][@...]", help="Only these hosts, or slots of them, counted from 0."
    ),
]
Exclude = Annotated[
    str, typer.Option(metavar="NAME[:SLOT,...][@...]", help="All hosts and slots but these.")
]
Passed = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME", help="Pass this environment variable on to other hosts, too."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be started; start and write nothing."),
]


def numbered(seconds: float) -> float:
    """Not ``nan``, which is neither below nor above any bound, nor without an end."""
    if not math.isfinite(seconds):
        msg = f"{seconds} is no number of seconds"
        raise typer.BadParameter(msg)
    return seconds


Grace = Annotated[
    float,
    typer.Option(
        min=1.0,
        callback=numbered,
        envvar="ONWARD_GRACE",
        metavar="SECONDS",
        help="How long ranks may take to save their state when a signal stops the run.",
    ),
]
Redo = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="Discard this stage's results and make them anew."),
]
Supervise = Annotated[
    bool,
    typer.Option("--supervise", help="Start again after a failure, from the newest checkpoint."),
]
Restarts = Annotated[
    int | None,
    typer.Option(min=0, help="Of --supervise: so many in a row may bring no progress. Default: 3."),
]
MinHosts = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of --supervise: go on without hosts that fail twice or do not answer, while so many "
        "are left. Default: with all hosts only.",
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Of --supervise: how long to wait for room on a full disk, or for a host that does "
        "not answer. Default: 1800.",
    ),
]
