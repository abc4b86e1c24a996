"""Verbs that look at runs: order, inspect, report, board."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.verbs.answers import answer, tell
from launcher.verbs.app import app
from launcher.verbs.options import Json, RecipeFile, RunFolderPath


@app.command(
    short_help="Show what given steps read, on which rank.",
    epilog="Example: onward order my.yaml dapt --step 100 --steps 2 --world 4",
)
def order(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A pretraining stage.")],
    step: Annotated[int, typer.Option(min=0, help="The first step, counted from 0.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as seed=2.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps.")] = 1,
    world: Annotated[int, typer.Option(min=1, help="How many ranks.")] = 1,
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Show which samples given steps of a stage read, on which rank; reads no token."""
    from launcher.inspection import order_table
    from launcher.recipe import load_recipe

    loaded = load_recipe(recipe, settings or [])
    rows = order_table(loaded, stage, range(step, step + steps), world)
    if as_json:
        answer({"stage": stage, "world": world, "rows": rows}, as_json)
        return
    from launcher.inspection import format_rows

    sys.stdout.writelines(format_rows(rows))


@app.command(
    short_help="Tell what a folder is, and verify it.",
    epilog="Example: onward inspect runs/quickstart/prepare/corpora/general/train",
)
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Any folder that Onward made; shards by URL, too.")
    ],
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Tell what a run, stage, shard folder, tokenizer, checkpoint or export is, and verify it."""
    from data_pipeline.storage import is_url

    if is_url(path):
        from data_pipeline.shards import describe as describe_shards

        answer(describe_shards(path), as_json)
        return
    from launcher.inspection import describe

    answer(describe(Path(path)), as_json)


@app.command(
    short_help="Make a run's report again.", epilog="Example: onward report runs/quickstart"
)
def report(run_folder: RunFolderPath) -> None:
    """Make the report again from a run's saved results: HTML, Markdown, JSON, plots."""
    from downstream.report import make_report
    from launcher.run_folder import RunFolder

    made = make_report(RunFolder(run_folder).require().root)
    tell(f"report: {made}")


@app.command(
    short_help="Show runs in TensorBoard.",
    epilog="Example: onward board runs/quickstart; onward board runs --port 6007",
)
def board(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN ...", help="Run folders, or folders of runs.")
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 6006, or a free one.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="To listen at. Whoever reaches it sees the runs."),
    ] = "127.0.0.1",
) -> None:
    """Show the curves, settings and lineage of runs in TensorBoard, from this machine alone.

    Several runs are shown side by side. Stages that begin later appear by themselves. A page of
    each training stage needs no server; where it lies is told, too.
    """
    from launcher.board import open_board, open_to

    board = open_board(folders, port, host)
    if who := open_to(host):
        tell(f"warning: {who}")
    for line in board.told():
        tell(line)
    sys.stderr.flush()
    # In this process's place: whatever ends the command ends the server.
    os.execv(board.command[0], board.command)
