"""From a pretraining stage to the planner's terms; and on the ranks, "auto" to ZeRO settings."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import AUTO, precision, read_deepspeed
from configs.devices import Device, host_memory
from configs.errors import RecipeError, ResourceError
from engine import choosing, compilation
from engine.activations import Rows, activations
from engine.adaptation import FullTraining, Prompt
from engine.choosing import JobOf, Option, Split
from engine.layout import layout_of
from engine.parameter_shapes import ModelShape, model_shape
from engine.planner import Job, Weights

if TYPE_CHECKING:
    from engine.backends import BackendConfig
    from engine.pretraining import PretrainStage
    from engine.protocols import Architecture

log = logging.getLogger(__name__)


def architecture(stage: "PretrainStage") -> "Architecture":
    """Which head its model has."""
    return "causal_lm" if stage.objective.name == "clm" else "masked_lm"


def weights_of(stage: "PretrainStage", shape: ModelShape) -> Weights:
    """What trains and what does not; a head made afresh beside frozen weights is not foreseen."""
    if isinstance(stage.adaptation, FullTraining):
        return whole(shape)
    part = stage.adaptation.counted(shape)
    own = [weight for weight in shape.weights if weight.name in part.trained]
    trained = [*own, *part.added]
    return Weights(
        tuple(weight.numel for weight in trained if len(weight.shape) > 1),
        tuple(weight.numel for weight in trained if len(weight.shape) == 1),
        tuple(weight.numel for weight in shape.weights if weight.name not in part.trained),
    )


def whole(shape: ModelShape) -> Weights:
    """A model all of whose weights train."""
    matrices = [number for number, weight in enumerate(shape.weights) if len(weight.shape) > 1]
    vectors = [number for number, weight in enumerate(shape.weights) if len(weight.shape) == 1]
    places = {number: place for place, number in enumerate((*matrices, *vectors))}
    return Weights(
        tuple(shape.weights[number].numel for number in matrices),
        tuple(shape.weights[number].numel for number in vectors),
        layout=layout_of(shape, [places[number] for number in range(len(shape.weights))]),
    )


def asked_split(stage: "PretrainStage", world: int) -> Split:
    """As the recipe has it; RecipeError if the batch does not divide."""
    recomputing = getattr(stage, "activation_checkpointing", None)
    every = recomputing.every if recomputing else None
    return Split(world, stage.backend.plan(world).micro_batch, every)


def job_of(stage: "PretrainStage", shape: ModelShape, weights: Weights, device: Device) -> JobOf:
    """The planner's job for any split of the stage's global batch."""
    values = read_deepspeed(stage.backend.config)
    penalties = stage.penalties
    averaging = getattr(stage, "averaging", None)

    def make(split: Split) -> Job:
        rows = rows_of(stage, values, split, device)
        return Job(
            weights,
            values,
            split.world,
            stage.backend.global_batch // split.world // split.micro_batch,
            activations(shape, rows),
            states=2 + sum(len(penalty.keys) for penalty in penalties),
            averages=1 if averaging else 0,
            pulls=any(penalty.keys for penalty in penalties),
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
    jobs = job_of(stage, shape, _weights_in(learner), device)
    try:
        resolved, option = choosing.resolve(values, jobs, split, device)
    except ResourceError as error:
        msg = f"backend: {error}"
        raise ResourceError(msg) from None
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


def _weights_in(learner: Any) -> Weights:
    """Of a learner that no backend holds yet."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    return Weights(
        tuple(p.numel() for p in trained if p.ndim > 1),
        tuple(p.numel() for p in trained if p.ndim <= 1),
        tuple(p.numel() for p in learner.parameters() if not p.requires_grad),
    )


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
