"""Verbs that hand over to other programs, and take over from them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from configs.errors import RecipeError
from launcher.verbs.answers import answer, stdout_kept_clean, tell
from launcher.verbs.app import app
from launcher.verbs.options import Json, RecipeFile, RunFolderPath
from launcher.verbs.running import make_conductor


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

    with stdout_kept_clean():
        facts = export_from(run_folder, folder, stage, step, weights)
    answer(facts, as_json)


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
    with stdout_kept_clean():
        facts = import_into(loaded, stage, Request(checkpoint, step, trust_checkpoint))
    answer(facts, as_json)


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
    with stdout_kept_clean():
        made = make_manifest(Adoption(location, tokenizer, out, kind, annotate))
        folder = out or (location if location.is_dir() else location.parent)
        facts = describe(folder)
    answer({**facts, "provenance": made.provenance}, as_json)


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
    answer(describe(out), as_json)


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

    conductor = make_conductor(recipe, [stage, *(settings or [])], None)
    with stdout_kept_clean():
        spread = Spread(executor, tasks, logs, parse_settings(arguments or []))
        run_spread(conductor, stage, spread)
    tell(f"{'submitted' if executor == 'slurm' else 'done'}: {conductor.folder.root}")
