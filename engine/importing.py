"""A run begun elsewhere goes on here: its checkpoint becomes the stage's own, once, verified."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, RecipeError
from data_pipeline.shards import find_shards
from data_pipeline.streaming import FixedRows
from engine.assemble import build_learner, build_objective, collate_all
from engine.optimization import AdamW
from engine.pretraining import PretrainStage

if TYPE_CHECKING:
    from configs.stage import StageContext
    from data_pipeline.streaming import TokenStream
    from engine.checkpoint.import_deepspeed import Contents
    from engine.learner import Learner
    from engine.protocols import Batch, Objective

_ROWS = 8
_ROWS_AT_ONCE = 2
_TOLERANCE = {"bfloat16": 5e-3, "float16": 1e-3, "float32": 1e-6}
"""Largest relative difference that rounding the weights once may make to a loss."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to import.

    Attributes:
        source: the checkpoint's folder, or the one that its ``latest`` lies in.
        step: which step of the stage it becomes; None: the one that it says it is.
        trust: run the code in files with other classes than DeepSpeed's own.
    """

    source: Path
    step: int | None = None
    trust: bool = False


def import_checkpoint(
    stage: PretrainStage, context: "StageContext", request: Request
) -> dict[str, Any]:
    """Make ``checkpoints/step-N`` of the stage from DeepSpeed's; returns JSON-able facts of it.

    Weights, Adam's moments and step count, skipped steps and fp16's loss scale are taken over.
    The learning rate is a function of the step; the data goes on at step N of the stage's order,
    as the order of another program is not known. Nothing is written before all checks have passed.

    Raises:
        RecipeError: the stage has fewer steps, or keeps state that DeepSpeed's checkpoint lacks.
        CheckpointError: the checkpoint is damaged, not of this model, or its weights disagree; or
            the stage has checkpoints already.
    """
    from engine.checkpoint.import_deepspeed import open_reader, read_checkpoint
    from engine.checkpoint.import_deepspeed.placing import Names, place
    from engine.checkpoint.import_deepspeed.weights import ImportedState, require_sound
    from engine.checkpoint.save import Alone, save
    from engine.frozen import KEY, frozen_digest
    from engine.hooks.origin import Origin
    from engine.protocols import Progress

    root = context.folder / "checkpoints"
    _require_none_yet(root)
    _require_no_further_state(stage)
    _adamw(stage)
    stage.check(context)
    stream = stage.open_stream(context)
    objective = build_objective(stage, context, stream)
    learner, _, _ = build_learner(stage, context, objective)
    frozen = frozen_digest(learner)
    reader = open_reader(request.source, trust=request.trust)
    found = read_checkpoint(reader, Names(learner).trains)
    step = _step(stage, stream, found, request)
    placed = place(found, learner, reader.folder)
    require_sound(placed, found.second_is, reader.folder)
    losses = _losses(_Check(stage, context, stream, objective, learner), placed, found)
    _require_equal(losses, found, reader.folder)
    facts = _facts(found, step, reader.folder) | {"losses": losses, "files": reader.provenance()}
    state = {
        "cursor": stream.cursor(step * stage.backend.global_batch).to_json(),
        "hooks": {Origin.name: Origin(facts).state_dict()},
        KEY: frozen,
    }
    budget = stage.budget(stream.rows[0], stage.backend.global_batch)
    average = stage.averaging.build(budget) if stage.averaging else None
    imported = ImportedState(placed.trained, _extra(found, step), average)
    folder = save(root, Progress(step), imported, state, context.key, Alone())
    return {"folder": str(folder), **facts, "notes": list(_notes(stage, found, step, losses))}


def _require_none_yet(root: Path) -> None:
    from engine.checkpoint.save import step_folders

    if present := step_folders(root):
        msg = (
            f"{root}: the stage has begun already ({present[0].name} is there); remove that folder "
            "to import in its place, or give another run folder with output=FOLDER"
        )
        raise CheckpointError(msg)


def _require_no_further_state(stage: PretrainStage) -> None:
    """A penalty's anchor or importances are in no checkpoint but one that was made with it."""
    keys = [key for penalty in stage.penalties for key in penalty.keys]
    if keys:
        msg = (
            f"penalties: they keep {', '.join(keys)} for every weight, which a checkpoint of "
            "DeepSpeed has not got; import into a stage without them, and let a second stage with "
            "them begin from its export"
        )
        raise RecipeError(msg)


def _adamw(stage: PretrainStage) -> AdamW:
    """The stage's optimizer; RecipeError unless it is the one whose moments can be imported."""
    if not isinstance(stage.optimizer, AdamW):
        msg = (
            f"optimizer {stage.optimizer.name}: the checkpoints that can be imported hold Adam's "
            "moments; go on with adamw, or start from the model alone"
        )
        raise RecipeError(msg)
    return stage.optimizer


def _step(stage: PretrainStage, stream: "TokenStream", found: "Contents", request: Request) -> int:
    step = found.step if request.step is None else request.step
    steps = stage.budget(stream.rows[0], stage.backend.global_batch)
    if step > steps:
        msg = (
            f"steps: the stage ends after step {steps}, the checkpoint stands at step {step}; give "
            "more steps, or name the step that it is to be here with --step N"
        )
        raise RecipeError(msg)
    return step


def _extra(found: "Contents", step: int) -> dict[str, Any]:
    """What ``Backend.load_extra_state`` takes; Adam's count is the steps less the skipped ones."""
    scale = {"loss_scale": dict(found.loss_scale)} if found.loss_scale else {}
    return {"skipped_steps": step - found.adam_steps, **scale}


@dataclass(frozen=True, slots=True)
class _Check:
    """What the losses are computed with."""

    stage: PretrainStage
    context: "StageContext"
    stream: "TokenStream"
    objective: "Objective"
    learner: "Learner"

    def rows(self) -> "tuple[str, list[Batch]]":
        """What the rows are, and a few of them with fixed masks."""
        stage, held_out = self.stage, self.stage.held_out()
        if not held_out:
            seed, sources = stage.run_seed(self.context), len(self.stream.sources)
            examples = self.stream.examples(0, _ROWS)
            made = collate_all(self.objective, examples, _ROWS_AT_ONCE, seed, sources)
            return "the stage's first training rows", made
        name, location = next(iter(held_out.items()))
        rows = FixedRows.open(
            find_shards(location, self.context.locate),
            stage.data.length,
            _ROWS,
            stage.data.packing,
            shards=stage.data.cache,
        )
        examples = rows.examples(0, len(rows))
        return f"validation set '{name}'", collate_all(
            self.objective, examples, _ROWS_AT_ONCE, 0, 1
        )

    def loss(self, batches: "Sequence[Batch]") -> float:
        """Mean loss over the targets, in fp32, without dropout."""
        from engine import distributed
        from engine.backends import passes

        device = distributed.device()
        self.learner.to(device)
        total = sum(float(passes.score_fixed(self.learner, b, device).total) for b in batches)
        return total / sum(batch.count for batch in batches)


def _losses(check: _Check, placed: Any, found: "Contents") -> dict[str, Any]:
    from engine.checkpoint.import_deepspeed.weights import fill

    what, batches = check.rows()
    losses: dict[str, Any] = {
        "rows": what,
        "targets": sum(batch.count for batch in batches),
        "model_of_the_recipe": check.loss(batches),
    }
    fill(check.learner, placed.trained)
    losses["imported"] = check.loss(batches)
    if placed.second:
        fill(check.learner, placed.second)
        losses["second_reading"] = check.loss(batches)
        losses["second_reading_is"] = found.second_is
    return losses


def _require_equal(losses: dict[str, Any], found: "Contents", where: Path) -> None:
    """The weights were compared one by one before: this holds what is made of them together."""
    imported, second = losses["imported"], losses.get("second_reading")
    if second is None:
        return
    kind = next((kind for kind in _TOLERANCE if kind in found.second_is), "float32")
    if not abs(imported - second) <= _TOLERANCE[kind] * abs(second):
        msg = (
            f"{where}: the loss on {losses['rows']} is {imported:.6f} with the imported weights, "
            f"{second:.6f} with {found.second_is}; nothing was imported"
        )
        raise CheckpointError(msg)


def _facts(found: "Contents", step: int, folder: Path) -> dict[str, Any]:
    return {
        "from": str(folder.absolute()),
        "kind": found.kind,
        "deepspeed": found.version,
        "world": found.world,
        "their_step": found.step,
        "step": step,
        "adam_steps": found.adam_steps,
        "loss_scale": dict(found.loss_scale) if found.loss_scale else None,
        "parameters": len(found.trained),
    }


def _notes(
    stage: PretrainStage, found: "Contents", step: int, losses: dict[str, Any]
) -> Iterator[str]:
    """What a person should know; none of it is an error."""
    yield from found.notes
    if stage.averaging and found.adam_steps:
        yield "the average of the weights begins at the imported ones"
    yield (
        f"the data goes on at step {step} of this stage's own order; which rows the run has read "
        "before is not known here, so some may be read again"
    )
    if not found.adam_steps:
        yield "the checkpoint holds no moments of Adam; they begin at zero"
    if not losses.get("second_reading"):
        yield "the checkpoint holds its weights once: there was nothing to compare them with"
    optimizer = _adamw(stage)
    ours = {"betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.eps}
    for key, value in ours.items():
        given = [group[key] for group in found.groups if key in group]
        theirs = {str(tuple(each) if key == "betas" else each) for each in given}
        if theirs - {str(value)}:
            yield f"optimizer: {key} was {', '.join(sorted(theirs))} there, is {value} here"
    decays = {group["weight_decay"] for group in found.groups if "weight_decay" in group}
    if decays and max(decays) != optimizer.weight_decay:
        yield f"optimizer: weight_decay was {max(decays)} there, is {optimizer.weight_decay} here"
    if losses["imported"] > losses["model_of_the_recipe"]:
        yield "the loss of the imported weights is above that of the recipe's own model"
