"""What a folder is, what a step reads, a model out of a run: the verbs that look at things."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, DataError, RecipeError
from launcher import chain
from launcher.run_folder import RunFolder, Status, read_json

if TYPE_CHECKING:
    from configs.stage import StageContext
    from data_pipeline.streaming import TokenStream
    from engine.exporting import Weights
    from engine.pretraining import PretrainStage
    from launcher.recipe import Recipe


def order_table(recipe: "Recipe", name: str, steps: range, world: int) -> list[dict[str, Any]]:
    """Every row that the steps (counted from 0) read: who reads it, and what stands in it.

    Raises:
        RecipeError: no such pretraining stage, steps beyond its end, a batch that does not divide.
        DataError: its shards are not made yet.
    """
    from data_pipeline.streaming import describe_steps

    stage, context = _pretraining(recipe, RunFolder(recipe.output.absolute()), name)
    stream = _with_what_was_raised(stage.open_stream(context), context)
    batch = stage.backend.plan(world).global_batch
    total = stage.budget(stream.rows[0], batch)
    if steps.stop > total:
        msg = f"stage {name}: its last step is {total - 1}, counted from 0; asked for {steps[-1]}"
        raise RecipeError(msg)
    return [
        {
            "step": row.step,
            "rank": row.rank,
            "index": row.index,
            "source": row.source,
            "epoch": row.epoch,
            "sample": row.sample,
            "shard": row.shard,
            "documents": [
                {"sequence": piece.sequence, "start": piece.start, "length": piece.length}
                for piece in row.documents
            ],
        }
        | ({} if row.label is None else {"label": row.label})
        for row in describe_steps(stream, steps, batch, world)
    ]


def _with_what_was_raised(stream: "TokenStream", context: "StageContext") -> "TokenStream":
    """The stream as the stage's newest checkpoint has it: its run may have raised a source."""
    from data_pipeline.streaming import Cursor
    from engine.checkpoint import newest

    root = context.folder / "checkpoints"
    if not context.key or not root.is_dir():
        return stream
    found = newest(root, context.key, verify="sizes")
    return stream.following(Cursor.from_json(found.state["cursor"])) if found else stream


def format_rows(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table for a person: a document is ``sequence[start:stop]`` of its shard folder."""
    labelled = any("label" in row for row in rows)
    label = " label" if labelled else ""
    yield f"  step rank    index source       epoch   sample shard{label}  documents\n"
    for row in rows:
        documents = " ".join(
            f"{piece['sequence']}[{piece['start']}:{piece['start'] + piece['length']}]"
            for piece in row["documents"]
        )
        label = f"{row['label']:>6}" if labelled else ""
        yield (
            f"{row['step']:>6} {row['rank']:>4} {row['index']:>8} {row['source']:<12} "
            f"{row['epoch']:>5} {row['sample']:>8} {row['shard']:>5}{label}  {documents}\n"
        )


def _pretraining(
    recipe: "Recipe", run: RunFolder, name: str
) -> tuple["PretrainStage", "StageContext"]:
    from configs.yaml_source import nearest
    from engine.pretraining import PretrainStage

    known = [n for n, stage in recipe.stages.items() if isinstance(stage, PretrainStage)]
    stage = recipe.stages.get(name)
    if not isinstance(stage, PretrainStage):
        msg = f"no pretraining stage '{name}'; {nearest(name, known)}"
        raise RecipeError(msg)
    standing = chain.survey(recipe, run)[name]
    return stage, chain.context_for_check(recipe, run, name, standing)


def describe(path: Path) -> dict[str, Any]:
    """JSON-able facts of anything that Onward made, its digests verified.

    Raises:
        DataError: nothing is there, it is none of these, or a shard is damaged.
        CheckpointError: a checkpoint or export is damaged.
    """
    if not path.exists():
        msg = f"{path}: nothing is there"
        raise DataError(msg)
    folder = path if path.is_dir() else path.parent
    if (folder / "recipe.yaml").is_file() and (folder / "provenance.json").is_file():
        return describe_run(RunFolder(folder))
    manifest = folder / "manifest.json"
    if manifest.is_file() and "tokenizer" in (_read_manifest(manifest) or {}):
        from data_pipeline.shards import describe as describe_shards

        return describe_shards(folder)
    if (folder / "status.json").is_file() or (folder / "prepared.json").is_file():
        return _describe_stage(folder)
    if (folder / "tokenizer.json").is_file() and not (folder / "onward.json").is_file():
        from data_pipeline.tokenization import describe_tokenizer

        return describe_tokenizer(folder)
    return _describe_checkpoint(folder)


def _describe_stage(folder: Path) -> dict[str, Any]:
    """A stage as its status tells; of a prepare stage also what it made."""
    status = RunFolder(folder.parent).status(folder.name)
    facts: dict[str, Any] = {"kind": "stage", "folder": str(folder)}
    if status:
        facts |= {"stage": status.config.get("kind")} | _status_facts(status)
    if (folder / "prepared.json").is_file():
        from data_pipeline.preparing.describe import describe as describe_prepared

        facts |= {"stage": "prepare"} | describe_prepared(folder)
    return facts


def _status_facts(status: Status) -> dict[str, Any]:
    hidden = {"config"} if status.submitted else {"config", "submitted"}
    return status.model_dump(mode="json", exclude=hidden, exclude_none=True)


def _read_manifest(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError:
        msg = f"{path}: not JSON; the file is damaged"
        raise DataError(msg) from None


def _describe_checkpoint(folder: Path) -> dict[str, Any]:
    from engine.checkpoint import describe as describe_checkpoint

    try:
        facts = describe_checkpoint(folder)
    except CheckpointError:
        msg = (
            f"{folder}: nothing that Onward made: neither a run (recipe.yaml), nor a stage "
            "(status.json), nor shards (manifest.json), nor a tokenizer (tokenizer.json), nor a "
            "checkpoint (step-N), nor an export (onward.json)"
        )
        raise DataError(msg) from None
    if not facts.get("intact", True):
        shown = json.dumps(facts.get("problems", []), ensure_ascii=False)
        msg = f"{folder}: a damaged {facts['kind']}: {shown}"
        raise CheckpointError(msg)
    return facts


def describe_run(run: RunFolder) -> dict[str, Any]:
    """A run's stages as their status files tell, and what it was made with."""
    import yaml

    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    made = read_json(run.provenance) or {}
    stages: dict[str, Any] = {}
    for name, config in recipe["stages"].items():
        status = run.status(name)
        stages[name] = {"kind": config["kind"], "state": status.state if status else "not begun"}
        if status:
            stages[name] |= _status_facts(status)
    return {
        "kind": "run",
        "folder": str(run.root),
        "name": recipe["name"],
        "seed": recipe["seed"],
        "stages": stages,
        "made_with": {key: made.get(key) for key in ("started", "host", "versions", "commit")},
    }


def export_from(
    folder: Path,
    target: Path,
    stage_name: str | None,
    step: int | None,
    weights: "Weights" = "trained",
) -> dict[str, Any]:
    """A model of a run as a Hugging Face folder, loaded back and compared.

    ``step`` None: the one that the stage has chosen, else that of the newest checkpoint.

    Raises:
        RecipeError: no such pretraining stage, or it keeps no average of its weights.
        CheckpointError: no such checkpoint, a damaged one, or one of another recipe.
    """
    from engine.checkpoint import newest
    from engine.choice import read_choice
    from engine.exporting import export_step
    from engine.pretraining import PretrainStage
    from launcher.recipe import load_recipe

    run = RunFolder(folder).require()
    recipe = load_recipe(run.recipe)
    names = [n for n, stage in recipe.stages.items() if isinstance(stage, PretrainStage)]
    if not names:
        msg = f"{run.recipe}: no pretraining stage, so no model"
        raise RecipeError(msg)
    name = stage_name or names[-1]
    stage, context = _pretraining(recipe, run, name)
    found = newest(context.folder / "checkpoints", context.key)
    if found is None:
        msg = f"{context.folder / 'checkpoints'}: no checkpoint yet; run stage {name} first"
        raise CheckpointError(msg)
    ended = read_choice(context.folder) or {"step": found.step}
    chosen = ended["step"] if step is None else step
    fingerprint = export_step(stage, context, chosen, target, weights)
    facts = {"folder": str(target), "stage": name, "step": chosen, "weights": weights}
    return facts | {"fingerprint": fingerprint}
