"""From a pretraining stage to the planner's terms; and on the ranks, "auto" to ZeRO settings."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import AUTO, precision, read_deepspeed
from configs.devices import Device, host_memory
from configs.errors import RecipeError, ResourceError
from engine import choosing, compilation
from engine.activations import Rows, activations, beside_teacher
from engine.adaptation import FullTraining, Prompt
from engine.choosing import JobOf, Option, Split
from engine.layout import Layout, layout_of
from engine.optimization import AdamW
from engine.optimization.parameter_groups import Member, members_of, require_all_used, unused
from engine.optimization.settings import OptimizerSettings
from engine.parameter_shapes import ModelShape, Weight, model_shape
from engine.penalties import Distillation
from engine.penalties.distillation import TEACHER
from engine.planner import Job, Weights
from engine.trained_part import TrainedPart, depth_of

if TYPE_CHECKING:
    from engine.backends import BackendConfig
    from engine.pretraining import PretrainStage
    from engine.protocols import Architecture

log = logging.getLogger(__name__)


def architecture(stage: "PretrainStage") -> "Architecture":
    """Which head its model has."""
    return "causal_lm" if stage.objective.name == "clm" else "masked_lm"


def weights_of(
    stage: "PretrainStage", shape: ModelShape, teacher: ModelShape | None = None
) -> Weights:
    """What trains, in which groups, and what does not.

    A head made afresh beside frozen weights, and heads of the objective's own, are not foreseen.

    Args:
        stage: its adaptation and its optimizer count.
        shape: of the model.
        teacher: of a penalty's.

    Raises:
        RecipeError: the adaptation or the optimizer does not go with such a model.
    """
    part = stage.adaptation.counted(shape)
    members = trained_members(shape, part)
    require_all_used(members, {})
    split = stage.optimizer.split(members, shape.sizes.layers + 1)
    sizes = {_named(weight): weight.numel for weight in (*shape.weights, *part.added)}
    groups = tuple(stage.optimizer.planned(group, sizes) for group in split)
    frozen = [weight for weight in shape.weights if weight.name not in part.trained]
    layout: Layout = ()
    taught = len(members) + len(frozen)
    if isinstance(stage.adaptation, FullTraining):
        places = {
            member.name: place
            for place, member in enumerate(member for group in split for member in group.members)
        }
        layout = layout_of(shape, [places[_named(weight)] for weight in shape.weights])
        if teacher is not None:
            beside = layout_of(teacher, range(taught, taught + len(teacher.weights)))
            layout += tuple(replace(module, has_backward=False) for module in beside)
    others = () if teacher is None else teacher.weights
    return Weights(groups, tuple(weight.numel for weight in (*frozen, *others)), layout)


def whole(shape: ModelShape, optimizer: OptimizerSettings | None = None) -> Weights:
    """A model all of whose weights train; ``optimizer`` None: AdamW, with one rate."""
    stage: Any = SimpleNamespace(adaptation=FullTraining(), optimizer=optimizer or AdamW(lr=1e-3))
    return weights_of(stage, shape)


def trained_members(shape: ModelShape, part: TrainedPart) -> list[Member]:
    """What trains, as the optimizer groups it, in the model's order."""
    own = [weight for weight in shape.weights if weight.name in part.trained]
    return [
        Member(_named(weight), len(weight.shape), depth_of(weight, shape))
        for weight in (*own, *part.added)
    ]


def _named(weight: Weight) -> str:
    """Its name in the learner; of what an adaptation adds only about so."""
    return f"backbone.{weight.name}"


def notes_of(stage: "PretrainStage", shape: ModelShape) -> Iterator[str]:
    """What of the weights' groups cannot be told without the model."""
    rates, part = stage.optimizer.rates, stage.adaptation.counted(shape)
    if idle := unused(trained_members(shape, part), rates):
        yield (
            f"optimizer.rates: no weight that is counted begins with {', '.join(idle)}; a group of "
            "such weights is counted with the others"
        )
    elif rates and part.added:
        yield (
            "optimizer.rates: what the adaptation adds has names of its own, so that its groups "
            "may be others than those counted"
        )


def teacher_of(stage: "PretrainStage") -> str | None:
    """Where the model lies that the stage learns from beside its own."""
    found = (each.teacher for each in stage.penalties if isinstance(each, Distillation))
    return next(found, None)


def asked_split(stage: "PretrainStage", world: int) -> Split:
    """As the recipe has it; RecipeError if the batch does not divide."""
    recomputing = getattr(stage, "activation_checkpointing", None)
    every = recomputing.every if recomputing else None
    return Split(world, stage.backend.plan(world).micro_batch, every)


def job_of(
    stage: "PretrainStage",
    shape: ModelShape,
    weights: Weights,
    device: Device,
    teacher: ModelShape | None = None,
) -> JobOf:
    """The planner's job for any split of the stage's global batch; ``weights`` has a teacher's."""
    values = read_deepspeed(stage.backend.config)
    penalties = stage.penalties
    averaging = getattr(stage, "averaging", None)
    validation = getattr(stage, "validation", None)

    def make(split: Split) -> Job:
        rows = rows_of(stage, values, split, device)
        work = activations(shape, rows)
        if teacher is not None:
            work = beside_teacher(work, teacher, rows)
        return Job(
            weights,
            values,
            split.world,
            stage.backend.global_batch // split.world // split.micro_batch,
            work,
            pulls=sum(len(penalty.keys) for penalty in penalties),
            averages=len(averaging.KEYS) if averaging else 0,
            is_swapped=bool(averaging and validation and validation.average),
            backend=stage.backend.name,
            sources=len(stage.data.sources),
            is_judged=getattr(stage, "guard", None) is not None,
            most_stage=3 if getattr(stage, "compile", None) is None else compilation.MOST_STAGE,
        )

    return make


def rows_of(
    stage: "PretrainStage", values: Mapping[str, Any], split: Split, device: Device
) -> Rows:
    """A micro-batch, as activations see it."""
    length = row_length(stage)
    return Rows(
        split.micro_batch,
        length,
        round(target_share(stage) * split.micro_batch * stage.data.length),
        4 if precision(values) == "fp32" else 2,
        split.recomputed_every,
        masked=stage.data.packing.SHARES_ROWS,
        scores_written_out=device.is_cpu,
        in_pieces=precision(values) != "fp16" and getattr(stage, "compile", None) is None,
        are_compared=teacher_of(stage) is not None,
    )


def row_length(stage: "PretrainStage") -> int:
    """Tokens of a row, with the prompt that is put before them."""
    prompt = stage.adaptation.length if isinstance(stage.adaptation, Prompt) else 0
    return stage.data.length + prompt


def target_share(stage: "PretrainStage") -> float:
    """Of all positions of a full row, those that are predicted."""
    return 1.0 if stage.objective.name == "clm" else float(stage.objective.masking.rate)


def settled(stage: "PretrainStage", learner: Any) -> "BackendConfig":
    """The stage's backend with ZeRO settings that fit where its config says "auto".

    Every rank calls it, and comes to the same: what counts is the smallest rank's memory.

    Raises:
        RecipeError: an architecture that the planner does not know.
        ResourceError: nothing fits; it says what would.
    """
    from engine import distributed

    values = read_deepspeed(stage.backend.config)
    if values.get("zero_optimization") != AUTO:
        return stage.backend
    config = learner.backbone.config.to_dict()
    try:
        shape = model_shape(config, architecture(stage))
    except RecipeError as error:
        msg = f'{error}; give the ZeRO stage in the place of "zero_optimization": "auto"'
        raise RecipeError(msg) from None
    device = _this_device()
    split = asked_split(stage, distributed.world())
    weights = weights_in(learner, stage.optimizer)
    jobs = job_of(stage, shape, weights, device, _teacher_in(learner, stage, shape))
    try:
        resolved, option = choosing.resolve(values, jobs, split, device)
    except ResourceError as error:
        msg = f"backend: {error}"
        raise ResourceError(msg, error.cause) from None
    if option is not None:
        log.info("backend: %s", reason(option, device, jobs, split))
    return stage.backend.model_copy(update={"config": resolved})


def reason(option: Option, device: Device, jobs: JobOf, split: Split) -> str:
    """Why it was chosen, in a line; where it lies on the host, what recomputing would do."""
    told = choosing.recomputing_would(jobs, split, device) if option.is_on_host else None
    need, room = choosing.gib(option.memory.peak), choosing.gib(choosing.usable(device))
    return (
        f"auto is {option.title}: the least of ZeRO that fits, with {need} of the {room} GiB "
        f"that a rank may use on {device.title}{f'; {told}' if told else ''}"
    )


def weights_in(learner: Any, optimizer: OptimizerSettings) -> Weights:
    """Of a learner that no backend holds yet; RecipeError as ``optimizer.groups``."""
    members, top = members_of(learner, are_placed=optimizer.are_placed)
    require_all_used(members, optimizer.rates)
    sizes = {name: p.numel() for name, p in learner.named_parameters()}
    return Weights(
        tuple(optimizer.planned(group, sizes) for group in optimizer.split(members, top)),
        tuple(p.numel() for p in learner.parameters() if not p.requires_grad),
    )


def _teacher_in(learner: Any, stage: "PretrainStage", shape: ModelShape) -> ModelShape | None:
    """Of a penalty's; where its architecture is not known, as large as the model."""
    if teacher_of(stage) is None:
        return None
    try:
        return model_shape(learner.heads[TEACHER].model.config.to_dict(), architecture(stage))
    except RecipeError:
        return shape


def _this_device() -> Device:
    """The one of all ranks' devices that has the least memory."""
    import os

    import torch

    from engine import distributed

    here = distributed.device()
    share = host_memory() // int(os.environ.get("LOCAL_SIZE", distributed.world()))
    if here.type == "cpu":
        own = Device("cpu", "the CPU", share, is_cpu=True)
    else:
        found = torch.cuda.get_device_properties(here)
        own = Device(here.type, found.name, found.total_memory, host=share)
    every: list[Device] = distributed.all_gather_object(own)
    return replace(
        min(every, key=lambda device: device.memory),
        host=min((device.host for device in every if device.host), default=None),
    )
