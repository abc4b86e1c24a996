"""The command line. Verbs import what they need when they run, so that help answers at once."""

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from configs.errors import OnwardError, Preempted, RecipeError
from launcher.spared import spare_threads

if TYPE_CHECKING:
    from launcher.conduct import Conductor
    from launcher.recipe import Recipe

_OBJECTS_BETWEEN_COLLECTIONS = 100_000

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
Grace = Annotated[
    float,
    typer.Option(
        min=1.0,
        envvar="ONWARD_GRACE",
        metavar="SECONDS",
        help="How long ranks may take to save their state when a signal stops the run.",
    ),
]
Redo = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="Discard this stage's results and make them anew."),
]


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
    conductor = _conductor(RECIPES / "quickstart.yaml", settings, processes, redo=redo, grace=grace)
    with _stdout_kept_clean():
        conductor.run()
    page = conductor.folder.stage("report") / "index.html"
    _tell(f"report: {page}" if page.exists() else f"done: {conductor.folder.root}")


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
    conductor = _conductor(recipe, words, processes, hostfile=hostfile)
    with _stdout_kept_clean():
        names = conductor.check()
    warnings = _warnings(conductor)
    _answer(_standings(conductor, names) | ({"warnings": warnings} if warnings else {}), as_json)


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
        answer = {"cluster": str(cluster), "ranks": cluster.world, "stages": made.stages}
        _answer(answer | {"errors": [str(error) for error in made.errors]}, as_json)
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


@app.command(
    short_help="Run a recipe's stages; go on where it stopped.",
    epilog="Example: onward run my.yaml dapt tapt --processes 2 stages.dapt.steps=500",
)
def run(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    words: Words = None,
    processes: Processes = None,
    hostfile: Hostfile = None,
    master_port: MasterPort = None,
    redo: Redo = None,
    grace: Grace = 60.0,
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Run a recipe's stages in order; finished ones are skipped, an interrupted one goes on.

    A signal (SIGTERM, SIGUSR1, Ctrl-C) makes a training stage save its state and ends the run with
    exit code 75; a second one, some seconds later, ends it at once. Run again to go on.
    """
    conductor = _conductor(
        recipe, words, processes, hostfile=hostfile, port=master_port, redo=redo, grace=grace
    )
    with _stdout_kept_clean():
        conductor.run()
    if as_json:
        _answer(_standings(conductor, list(conductor.recipe.stages)), as_json)
    else:
        _tell(f"done: {conductor.folder.root}")


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
        _answer({"stage": stage, "world": world, "rows": rows}, as_json)
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

        _answer(describe_shards(path), as_json)
        return
    from launcher.inspection import describe

    _answer(describe(Path(path)), as_json)


@app.command(
    short_help="Write a Hugging Face model folder.",
    epilog="Example: onward export runs/quickstart my-model --stage dapt",
)
def export(
    run_folder: RunFolderPath,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model goes.")],
    stage: Annotated[
        str | None, typer.Option(help="Whose model. Default: the last pretraining stage's.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="From the checkpoint after this step. Default: last.")
    ] = None,
    weights: Annotated[
        Literal["trained", "average"], typer.Option(help="The weights, or their running average.")
    ] = "trained",
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Write a Hugging Face folder from a checkpoint, loaded back and compared."""
    from launcher.inspection import export_from

    with _stdout_kept_clean():
        facts = export_from(run_folder, folder, stage, step, weights)
    _answer(facts, as_json)


@app.command(
    "import",
    short_help="Go on from a run that was begun with DeepSpeed elsewhere.",
    epilog="Example: onward import old/checkpoint-500 my.yaml dapt stages.dapt.steps=2000",
)
def import_(  # noqa: PLR0913, PLR0917 -- the options of a command line
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder of DeepSpeed's (global_stepN), or the one with its file 'latest'.",
        ),
    ],
    recipe: RecipeFile,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A pretraining stage.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as seed=2.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="The step that it is to be here. Default: its own.")
    ] = None,
    trust_checkpoint: Annotated[  # noqa: FBT002 -- typer's way of declaring a flag
        bool,
        typer.Option("--trust-checkpoint", help="Run the code that strange classes in it bring."),
    ] = False,
    as_json: Json = False,  # noqa: FBT002 -- as above
) -> None:
    """Make a stage's checkpoint from DeepSpeed's own or a universal one; `onward run` goes on.

    Taken over are the weights, Adam's moments and steps, and fp16's loss scale, of ZeRO stages 0
    to 3 on any number of ranks. The loss is checked first; if it fails, the stage is as it was.
    The data goes on at step N of the stage's own order: another program's is not known.
    """
    from engine.importing import Request
    from launcher.importing import import_into
    from launcher.recipe import load_recipe

    loaded = load_recipe(recipe, settings or [])
    with _stdout_kept_clean():
        facts = import_into(loaded, stage, Request(checkpoint, step, trust_checkpoint))
    _answer(facts, as_json)


@app.command(
    short_help="Read other projects' token files as they are.",
    epilog="Example: onward adopt data/pile_text_document --tokenizer gpt-neox-20b",
)
def adopt(
    location: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder of .bin and .idx files, or one pair.")
    ],
    tokenizer: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the tokenizer that made them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the manifest and links. Default: beside the files."),
    ] = None,
    contains: Annotated[
        str,
        typer.Option(
            metavar="auto|none|prefix|suffix|both",
            help="Special tokens that the files hold around each document. Default: as they show.",
        ),
    ] = "auto",
    annotate: Annotated[  # noqa: FBT002 -- typer's way of declaring a flag
        bool, typer.Option("--annotate", help="Find word and sentence starts; needs .ann files.")
    ] = False,
    as_json: Json = False,  # noqa: FBT002 -- as above
) -> None:
    """Make a manifest for token files of Megatron-LM, GPT-NeoX, datatrove and the like.

    The files are read through and not changed: their ids are checked against the vocabulary, and
    packing adds no special token that they hold already. Masking of whole words needs --annotate.
    """
    from typing import get_args

    from data_pipeline.adopting import Adoption, Contains
    from data_pipeline.adopting import adopt as make_manifest
    from data_pipeline.shards import describe

    if contains not in get_args(Contains):
        msg = f"--contains {contains}: expected one of {', '.join(get_args(Contains))}"
        raise RecipeError(msg)
    kind: Any = contains
    with _stdout_kept_clean():
        made = make_manifest(Adoption(location, tokenizer, out, kind, annotate))
        folder = out or (location if location.is_dir() else location.parent)
        facts = describe(folder)
    _answer({**facts, "provenance": made.provenance}, as_json)


@app.command(
    short_help="Write shards for other projects' readers.",
    epilog="Example: onward export-shards runs/mine/prepare/corpora/domain/train --out tokens",
)
def export_shards(
    folder: Annotated[str, typer.Argument(metavar="PATH", help="A shard folder; a URL, too.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    dtype: Annotated[str, typer.Option(help="Of the tokens: int32.")] = "int32",
    as_json: Json = False,  # noqa: FBT002 -- typer's way of declaring a flag
) -> None:
    """Write the .bin and .idx files of shards again, with tokens that every reader reads alike.

    Megatron reads shards as they are. DeepSpeed's reader takes uint16 tokens for uint64.
    """
    from data_pipeline.shards import describe
    from data_pipeline.shards.export import export_shards as write_copies

    write_copies(folder, out, dtype)
    _answer(describe(out), as_json)


@app.command(
    short_help="Make a run's report again.", epilog="Example: onward report runs/quickstart"
)
def report(run_folder: RunFolderPath) -> None:
    """Make the report again from a run's saved results: HTML, Markdown, JSON, plots."""
    from downstream.report import make_report
    from launcher.run_folder import RunFolder

    made = make_report(RunFolder(run_folder).require().root)
    _tell(f"report: {made}")


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
) -> None:
    """Show the curves, settings and lineage of runs in TensorBoard, from this machine alone.

    Several runs are shown side by side. Stages that begin later appear by themselves.
    """
    from launcher.board import open_board

    board = open_board(folders, port)
    for line in board.told():
        _tell(line)
    sys.stderr.flush()
    # In this process's place: whatever ends the command ends the server.
    os.execv(board.command[0], board.command)


@app.command(
    short_help="Run a prepare stage by datatrove: local, Slurm, Ray.",
    epilog="Example: onward datatrove my.yaml prepare --executor slurm --tasks 200 "
    "--set partition=cpu --set time=20:00:00",
)
def datatrove(  # noqa: PLR0913, PLR0917 -- the options of a command line
    recipe: RecipeFile,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A prepare stage.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as seed=2.")
    ] = None,
    executor: Annotated[
        Literal["local", "slurm", "ray"], typer.Option(help="Which of datatrove's executors.")
    ] = "local",
    tasks: Annotated[int, typer.Option(min=1, help="So many tasks share each phase.")] = 2,
    logs: Annotated[
        Path | None, typer.Option(help="Where datatrove logs. Default: in the stage's folder.")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the executor."),
    ] = None,
) -> None:
    """Run a prepare stage by datatrove, for corpora beyond one launch's reach.

    The shards are those that `onward run` makes. After Slurm's jobs `onward run` goes on from them.
    """
    from launcher.executors import Spread, parse_settings, run_spread

    conductor = _conductor(recipe, [stage, *(settings or [])], None)
    with _stdout_kept_clean():
        spread = Spread(executor, tasks, logs, parse_settings(arguments or []))
        run_spread(conductor, stage, spread)
    _tell(f"{'submitted' if executor == 'slurm' else 'done'}: {conductor.folder.root}")


def _conductor(  # noqa: PLR0913 -- the options of a command line
    path: Path,
    words: list[str] | None,
    processes: int | None,
    *,
    hostfile: Path | None = None,
    port: int | None = None,
    redo: list[str] | None = None,
    grace: float = 60.0,
) -> "Conductor":
    from launcher.chain import Request
    from launcher.conduct import Conductor
    from launcher.recipe import check_world, load_recipe
    from launcher.start import Placement

    if processes and hostfile:
        msg = "--processes and --hostfile: give one; the hostfile's slots say how many processes"
        raise RecipeError(msg)
    settings = [word for word in words or [] if "=" in word]
    stages = tuple(word for word in words or [] if "=" not in word)
    recipe: Recipe = load_recipe(path, settings)
    return Conductor(
        recipe,
        Request(stages, frozenset(redo or [])),
        Placement(processes, hostfile, port, grace=grace),
        _tell,
        lambda names, world: check_world(recipe, names, world),
    )


def _warnings(conductor: "Conductor") -> list[str]:
    """What is no error, but may spoil the results."""
    from launcher.leakage import leaks

    found = leaks(conductor.recipe.stages)
    return [f"{'.'.join(map(str, problem.keys))}: {problem.message}" for problem in found]


def _standings(conductor: "Conductor", names: list[str]) -> dict[str, Any]:
    from launcher.chain import survey

    standings = survey(conductor.recipe, conductor.folder)
    return {
        "recipe": conductor.recipe.name,
        "run": str(conductor.folder.root),
        "stages": {name: standings[name].state for name in names},
    }


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """What libraries print goes to stderr: stdout is for answers."""
    from launcher.environment import settle_accelerator

    settle_accelerator()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _answer(value: Mapping[str, Any], as_json: bool) -> None:  # noqa: FBT001 -- from typer's flag
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        return
    from configs.yaml_source import yaml_text

    sys.stdout.write(yaml_text(value))


def main() -> None:
    """Run the command line."""
    # What is imported lives as long as the command: to look through it again and again for what
    # does not takes a tenth of the time that check and plan need.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    spare_threads()
    # --debug is taken before and after the verb alike.
    words = [word for word in sys.argv[1:] if word != "--debug"]
    guarded(lambda: app(words, prog_name="onward"))


def guarded(run: Callable[[], object]) -> None:
    """Every known error is one message on stderr and its kind's exit code."""
    try:
        run()
    except OnwardError as error:
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        _tell(str(error) if isinstance(error, Preempted) else f"error: {error}")
        _error_as_json(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except BaseException as error:
        _end_otherwise(error)


def _end_otherwise(error: BaseException) -> None:
    from launcher.interruption import Interrupted

    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, Interrupted):
        _tell(f"{error}; run the same command again to go on")
        sys.exit(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        sys.exit(128 + signal.SIGINT)
    if "--debug" in sys.argv:
        raise error
    with tempfile.NamedTemporaryFile(
        "w", prefix="onward-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    _tell(
        f"error: this should not have happened: {type(error).__name__}: {error}\n"
        f"The traceback is in {file.name}"
    )
    sys.exit(1)


def _error_as_json(error: OnwardError) -> None:
    """A program that asked for JSON gets the error so, too."""
    if "--json" in sys.argv:
        facts = {
            "kind": type(error).__name__,
            "message": str(error),
            "exit_code": error.exit_code,
        }
        sys.stdout.write(json.dumps({"error": facts}, ensure_ascii=False) + "\n")
