"""The command line that the verbs join."""

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="onward",
    help="Continued pretraining, exactly: raw text to a significance-tested answer.",
    epilog="Exit codes: 0 done, 2 recipe or usage, 3 data, 4 checkpoint, 5 processes lost, "
    "6 numerical, 7 resources, 75 stopped with its state saved, 128+N stopped by signal N (after "
    "both run again to go on), 1 other.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:  # noqa: FBT001 -- typer calls it so
    if asked:
        import importlib.metadata

        sys.stdout.write(f"onward {importlib.metadata.version('onward')}\n")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[  # noqa: FBT002 -- typer's way of declaring a flag
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: FBT002 -- as above
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Continued pretraining, exactly: raw text to a significance-tested answer."""
    del debug, version  # main() reads the one, the other ends the program
