"""A pretraining stage from its parts: the one place where data, model, backend and hooks meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import BatchPlan, precision, read_deepspeed
from configs.errors import DataError
from configs.stage import StageContext
from data_pipeline.example import Example
from data_pipeline.streaming import TokenStream, describe_steps, slice_of_step
from data_pipeline.tokenization import tokenizer_sha256
from engine.earlier import load_teacher, open_importances, require_importances
from engine.pretraining import (
    PretrainStage,
    require_compilable,
    require_word_starts,
)

if TYPE_CHECKING:
    from torch import nn

    from engine.checkpoint.store import FragmentStore
    from engine.hooks import ChoiceHook, ForgettingHook, GuardHook, TensorBoardHook
    from engine.hooks.checkpointing import Wishes
    from engine.learner import Learner
    from engine.oversight import Oversight
    from engine.penalties import PenaltyConfig
    from engine.protocols import Adaptation, Backend, Batch, Hook, Objective, Progress


@dataclass(slots=True)
class Parts:
    """Everything a pretraining stage has in hand before its first step.

    Attributes:
        stream: the run itself may raise a source of it, from rows on that have not been read.
        frozen: digest of the weights that do not train; None if all do.
        tokenizer: the model's, a transformers tokenizer.
    """

    stage: PretrainStage
    context: StageContext
    stream: TokenStream
    objective: "Objective"
    backend: "Backend"
    batches: BatchPlan
    steps: int
    seed: int
    frozen: str | None
    tokenizer: Any

    def make(self, step: int) -> list["Batch"]:
        """This rank's micro-batches of a step: a pure function of the step's number."""
        start, stop = slice_of_step(
            step, self.batches.global_batch, self.backend.rank, self.backend.world
        )
        return collate_all(
            self.objective,
            self.stream.examples(start, stop),
            self.batches.micro_batch,
            self.seed,
            len(self.stream.sources),
        )


def collate_all(
    objective: "Objective", examples: Sequence[Example], size: int, seed: int, sources: int
) -> list["Batch"]:
    """Micro-batches of ``size`` rows each, the last one smaller if it does not divide."""
    pieces = (examples[at : at + size] for at in range(0, len(examples), size))
    return [objective.collate(piece, seed, sources) for piece in pieces]


def build_objective(
    stage: PretrainStage, context: StageContext, stream: TokenStream
) -> "Objective":
    """The stage's objective, with the penalties on the loss around it."""
    objective: Objective = stage.objective.build(stream.special, stream.vocabulary_size)

    def load(location: str) -> "nn.Module":
        return load_teacher(
            location,
            objective.architecture,
            context.locate,
            stream.tokenizer_sha256,
            shared_rows=stage.data.packing.SHARES_ROWS,
        )

    for penalty in stage.penalties:
        if penalty.ON == "loss":
            objective = penalty.around(objective, load)
    return objective


def build_learner(
    stage: PretrainStage, context: StageContext, objective: "Objective"
) -> tuple["Learner", "Adaptation", Any]:
    """Model with adaptation and heads (CPU, fp32), the adaptation, the tokenizer."""
    from engine.learner import Learner

    seed = stage.run_seed(context)
    shared = stage.data.packing.SHARES_ROWS
    loaded = stage.model.build(context.locate, objective.architecture, seed, shared_rows=shared)
    named = loaded.model.named_parameters(remove_duplicate=False)
    fresh = [parameter for name, parameter in named if name in loaded.fresh]
    adaptation = stage.adaptation.build(seed)
    backbone = adaptation.apply(loaded.model)
    for parameter in fresh:
        # Random weights that an adaptation froze would stay random.
        parameter.requires_grad_()
    return Learner(backbone, objective), adaptation, loaded.tokenizer


def assemble(stage: PretrainStage, context: StageContext) -> Parts:
    """Open the data, build the model, wrap it in the backend; no step is taken."""
    from engine import distributed
    from engine.frozen import frozen_digest
    from engine.isolation import require_positions
    from engine.stage_memory import settled

    seed = stage.run_seed(context)
    share = slice(distributed.rank(), None, distributed.world())
    stream = distributed.together(lambda: stage.open_stream(context, stage.data.verify, share))
    objective = build_objective(stage, context, stream)
    require_word_starts(stage.objective, stream.reader)
    learner, _, tokenizer = build_learner(stage, context, objective)
    _require_tokenizer(tokenizer_sha256(tokenizer.backend_tokenizer), stream)
    longest = stage.data.packing.longest_piece(stage.data.length)
    for model in (learner.backbone, *(head.model for head in _whole_models(learner))):
        require_positions(model, longest, "data")
    frozen = distributed.on_first(lambda: frozen_digest(learner))
    stage = stage.model_copy(update={"backend": settled(stage, learner)})
    _economise(stage, learner)
    batches = stage.backend.plan(distributed.world())
    steps = stage.budget(stream.rows[0], batches.global_batch)
    on_weights = [penalty for penalty in stage.penalties if penalty.ON == "weights"]
    pulls = [penalty.build(_importances(penalty, learner, context)) for penalty in on_weights]
    average = stage.averaging.build(steps) if stage.averaging else None
    backend = stage.backend.build(learner, stage.optimizer, pulls, seed, average)
    stream.require_rows(steps * batches.global_batch)
    return Parts(
        stage, context, stream, objective, backend, batches, steps, seed, frozen, tokenizer
    )


def _importances(
    penalty: "PenaltyConfig", learner: "Learner", context: StageContext
) -> list["FragmentStore"]:
    """Of earlier stages; all ranks see before the first step whether they fit."""
    stores = [open_importances(place, context.locate) for place in penalty.importances]
    for store in stores:
        require_importances(store, learner)
    return stores


def _economise(stage: PretrainStage, learner: "Learner") -> None:
    """Recompute layers and compile, as asked; what is exported and counted stays as it is."""
    import torch

    from engine import distributed
    from engine.kernels.choice import quicken

    require_compilable(stage)
    # A compiled stage turns it on; an earlier one of this process may have been compiled.
    torch.use_deterministic_algorithms(mode=False)
    if stage.activation_checkpointing is not None:
        stage.activation_checkpointing.apply(learner.backbone)
    if stage.compile is not None:
        stage.compile.apply(learner)
        return
    kind = precision(read_deepspeed(stage.backend.config))
    for model in (learner.backbone, *(head.model for head in _whole_models(learner))):
        quicken(model, distributed.device(), kind, stage.data.length)


def _whole_models(learner: "Learner") -> list[Any]:
    """Models beside the backbone, which a penalty brought."""
    return [head for head in learner.heads.values() if hasattr(head, "model")]


def _require_tokenizer(sha256: str, stream: TokenStream) -> None:
    if sha256 != stream.tokenizer_sha256:
        msg = (
            f"the model's tokenizer has sha256 {sha256[:16]}, the shards were made with "
            f"{stream.tokenizer_sha256[:16]}; prepare the data with the model's tokenizer"
        )
        raise DataError(msg)


def make_hooks(parts: Parts, oversight: "Oversight") -> list["Hook"]:
    """Checkpoints come late: what is saved is what the others have seen."""
    from engine import frozen, watching
    from engine.board.pages import session_of
    from engine.checkpoint.save import DUE
    from engine.hooks import (
        CheckpointHook,
        Garbage,
        Leaving,
        LivePage,
        Measured,
        MetricsHook,
        Origin,
        TensorBoardHook,
        Throughput,
    )
    from engine.watching import HeldOutRows, Surroundings

    stage, folder, steps = parts.stage, parts.context.folder, parts.steps
    session = session_of(parts)
    board = TensorBoardHook(folder / "tensorboard", session)
    page = LivePage(folder / "live.html", session.settings, stage.log_every, steps)
    metrics = MetricsHook(
        folder / "metrics.jsonl",
        parts.stream.sources,
        stage.log_every,
        steps,
        Throughput(parts.objective.architecture, stage.data.length),
        [board],
        measures=parts.objective.measures,
        asked=lambda step: parts.stream.shares(step * parts.batches.global_batch - 1),
    )
    guard = _guard(parts)
    around = Surroundings(oversight, [board], Measured())
    held_out = HeldOutRows.open(parts)
    forgetting = watching.forgetting(parts, held_out, around)
    choice = watching.choice(parts, around)
    hooks: list[Hook] = [
        # First: the others shall not see a step that is rolled back.
        *guard,
        Origin(),
        board,
        metrics,
        *_stragglers(parts, board),
        *watching.validation(parts, held_out, around),
        *stage.more_hooks(parts, around),
        # They decide by what the hooks before them have measured.
        *forgetting,
        *choice,
    ]

    def state(progress: "Progress") -> dict[str, Any]:
        index, step = progress.step * parts.batches.global_batch, progress.step
        return {
            DUE: step % policy.every == 0 or step == steps or saving.wishes.saved(step),
            "cursor": parts.stream.cursor(index).to_json(),
            "hooks": hook_states(hooks),
            frozen.KEY: parts.frozen,
        }

    root, key, policy = folder / "checkpoints", parts.context.key, stage.checkpoint
    saving = CheckpointHook(root, key, state, policy, steps, oversight.stop, [board])
    saving.wishes = _wishes(guard, forgetting, choice)
    # Last: the loop is left for what has been decided when the state is saved.
    deciders: list[ForgettingHook | ChoiceHook] = [*forgetting, *choice]
    leaving = [Leaving(deciders)] if deciders else []
    return [*hooks, Garbage(), page, saving, *_profile(parts, board), *leaving]


def _wishes(
    guard: Sequence["GuardHook"],
    forgetting: Sequence["ForgettingHook"],
    choice: Sequence["ChoiceHook"],
) -> "Wishes":
    """What they want of the checkpoints."""
    from engine.hooks.checkpointing import Wishes

    deciders: list[ForgettingHook | ChoiceHook] = [*forgetting, *choice]

    def in_doubt() -> list[int]:
        found = [*(g.first_in_doubt for g in guard), *(f.in_doubt for f in forgetting)]
        return [step for step in found if step is not None]

    def needs(step: int) -> int | None:
        return choice[0].needs(step) if choice else None

    return Wishes(
        lambda step: any(each.wants_saved(step) for each in deciders),
        in_doubt,
        needs,
        len(deciders),
    )


def hook_states(hooks: Sequence["Hook"]) -> dict[str, dict[str, Any]]:
    """Every hook's state; each is asked, whatever happens to another.

    Some ask all ranks, so one that was left out on this rank alone would keep the others waiting.

    Raises:
        Exception: the first that a hook raised.
    """
    states: dict[str, dict[str, Any]] = {}
    errors: list[Exception] = []
    for hook in hooks:
        try:
            states[hook.name] = hook.state_dict()
        except Exception as error:  # raised below, when all have been asked
            errors.append(error)
    if errors:
        raise errors[0]
    return states


def _guard(parts: Parts) -> list["GuardHook"]:
    from engine.hooks import GuardHook

    def rows(step: int) -> list[dict[str, Any]]:
        """As ``onward order`` prints them."""
        read = describe_steps(
            parts.stream, range(step, step + 1), parts.batches.global_batch, world=1
        )
        names = ("index", "source", "epoch", "sample", "shard")
        return [{name: getattr(row, name) for name in names} for row in read]

    asked = parts.stage.guard
    return [GuardHook(asked, parts.context.folder / "skipped.jsonl", rows)] if asked else []


def _profile(parts: Parts, board: "TensorBoardHook") -> list["Hook"]:
    from engine.hooks import ProfileHook

    asked, folder = parts.stage.profile, parts.context.folder / "profile"
    return [ProfileHook(asked, folder, parts.steps, board.write_text)] if asked else []


def _stragglers(parts: Parts, board: "TensorBoardHook") -> list["Hook"]:
    import socket

    from engine import distributed
    from engine.hooks import Stragglers

    if parts.backend.world == 1:
        return []
    path, every = parts.context.folder / "stragglers.jsonl", parts.stage.log_every
    hosts = distributed.all_gather_object(socket.gethostname())
    return [Stragglers(path, hosts, every, parts.steps, [board])]
