"""The verb that takes over a run begun with DeepSpeed elsewhere."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError
from configs.yaml_source import nearest
from launcher import chain, provenance
from launcher.interruption import signals_interrupt
from launcher.run_folder import RunFolder

if TYPE_CHECKING:
    from configs.stage import StageContext
    from engine.importing import Request
    from launcher.recipe import Recipe


def import_into(recipe: "Recipe", name: str, request: "Request") -> dict[str, Any]:
    """Make a checkpoint of a pretraining stage from DeepSpeed's; `onward run` goes on from it.

    If it cannot be imported, the stage is as it was; plans of packing that were made on the way
    stay in the run folder.

    Raises:
        RecipeError: no such pretraining stage, or it is done already.
        DataError: an input of the stage is not done.
        CheckpointError: the checkpoint cannot be imported, or the stage has checkpoints already.
    """
    from engine.importing import import_checkpoint
    from engine.pretraining import PretrainStage

    stage = recipe.stages.get(name)
    if not isinstance(stage, PretrainStage):
        known = [n for n, each in recipe.stages.items() if isinstance(each, PretrainStage)]
        msg = f"no pretraining stage '{name}'; {nearest(name, known)}"
        raise RecipeError(msg)
    run = RunFolder(recipe.output.absolute())
    with signals_interrupt(), run.lock(), _as_it_was(run, name):
        context = _enter(recipe, run, name)
        facts = import_checkpoint(stage, context, request)
        run.write_recipe(recipe.model_dump(mode="json") | {"output": str(run.root)})
        provenance.record(run, recipe.seed, provenance.command_line(), {"localhost": 1}, None)
    return {"stage": name, **facts}


def _enter(recipe: "Recipe", run: RunFolder, name: str) -> "StageContext":
    context = chain.enter(recipe, run, name)
    if context is None:
        msg = (
            f"stage {name} is done already; import into another run folder (output=FOLDER), or "
            f"remove {run.stage(name)}"
        )
        raise RecipeError(msg)
    return context


@contextmanager
def _as_it_was(run: RunFolder, name: str) -> Iterator[None]:
    """After an error: a stage that had not begun has not begun."""
    before = run.status(name)
    folder = run.stage(name)
    existed, had_checkpoints = folder.exists(), (folder / "checkpoints").exists()
    try:
        yield
    except BaseException:
        if existed and not had_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if not existed:
            run.discard(name)
        elif before is None:
            (folder / "status.json").unlink(missing_ok=True)
        else:
            run.write_status(name, before)
        raise
