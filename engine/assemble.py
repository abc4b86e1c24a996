"""A pretraining stage from its parts: the one place where data, model, backend and hooks meet."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import deepspeed_facts
from configs.deepspeed_json import AUTO, BatchPlan, offload_device, read_deepspeed, zero_stage
from configs.errors import DataError, RecipeError
from configs.schema import Config
from configs.stage import Runs, StageConfig, StageContext
from data_pipeline.example import Example
from data_pipeline.randomness import keyed
from data_pipeline.shards import Verify, find_shards
from data_pipeline.streaming import (
    Cursor,
    DataConfig,
    FixedRows,
    RowReader,
    TokenStream,
    describe_steps,
    slice_of_step,
)
from data_pipeline.tokenization import tokenizer_sha256
from engine.activation_checkpointing import ActivationCheckpointing, recomputable
from engine.adaptation import AdaptationConfig, FullTraining
from engine.averaging import AveragingConfig
from engine.backends import BackendConfig
from engine.checkpoint.policy import CheckpointConfig
from engine.compilation import Compilation
from engine.guarding import GuardConfig, RollBack
from engine.models import ModelConfig
from engine.objectives import ObjectiveConfig, require_fitting
from engine.optimization import OptimizerConfig, ScheduleConfig
from engine.penalties import PenaltyConfig

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.hooks import GuardHook, TensorBoardHook
    from engine.learner import Learner
    from engine.out_of_memory import OutOfMemory
    from engine.oversight import Oversight
    from engine.protocols import Adaptation, Backend, Batch, Hook, Objective, Progress


class ValidationConfig(Config):
    """Held-out loss during training, on the same rows with the same masks each time."""

    every: PositiveInt = Field(description="steps between two validations")
    rows: PositiveInt = Field(64, description="packed rows read from each set")
    sets: dict[str, str] = Field(min_length=1, description="name -> location of a shard folder")


class PretrainStage(StageConfig):
    """Continued pretraining (or pretraining from random weights) of one model on one mixture."""

    VERSION: ClassVar[int] = 3
    RUNS: ClassVar[Runs] = "ranks"
    UNKEYED: ClassVar[frozenset[str]] = frozenset(
        {
            "log_every",
            "checkpoint",
            "hang_after",
            "activation_checkpointing",
            "data.verify",
            "data.mode",
            "data.cache",
        }
    )
    # The cursor of a checkpoint tells whether what has been read is still the same.
    APPENDED: ClassVar[frozenset[str]] = frozenset({"data.changes", "data.skip", "guard"})
    REDRAWN: ClassVar[frozenset[str]] = frozenset({deepspeed_facts.MICRO_BATCH})
    KEPT: ClassVar[frozenset[str]] = frozenset({"checkpoints/step-*"})

    kind: Literal["pretrain"] = "pretrain"
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    adaptation: AdaptationConfig = FullTraining()
    activation_checkpointing: ActivationCheckpointing | None = None
    compile: Compilation | None = None
    penalties: tuple[PenaltyConfig, ...] = ()
    averaging: AveragingConfig | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    steps: PositiveInt | None = Field(None, description="optimizer steps")
    epochs: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="passes over the only source"
    )
    backend: BackendConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig | None = None
    validation: ValidationConfig | None = None
    log_every: PositiveInt = 10
    hang_after: PositiveFloat = Field(
        900.0, description="seconds without progress on any rank after which the run is ended"
    )
    seed: int | None = Field(None, description="absent: from the recipe's seed and the stage name")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            msg = "give exactly one of 'steps' and 'epochs'"
            raise ValueError(msg)
        if self.epochs is not None and len(self.data.sources) > 1:
            msg = "'epochs' has no meaning for a mixture of sources; give 'steps'"
            raise ValueError(msg)
        require_fitting(self.objective, self.data.packing)
        return self

    def run(self, context: StageContext) -> str:
        """Train to the end of the budget, export, and return the digest of what was exported."""
        from engine import distributed

        parts = assemble(self, context)
        step = train_from_newest(parts)
        return distributed.on_first(lambda: export_all(self, context, step))

    def keyed_facts(self) -> dict[str, Any]:
        """The config, and of the backend what changes more than rounding."""
        facts = deepspeed_facts.computed(read_deepspeed(self.backend.config))
        return super().keyed_facts() | {"backend": facts}

    def shared_out(self, ranks: int) -> dict[str, str | int]:
        """ZeRO stage, offload, micro-batch, and which backend it is."""
        values = read_deepspeed(self.backend.config)
        return deepspeed_facts.shared_out(values, self.backend.name, ranks)

    def check(self, context: StageContext) -> None:
        """Data, tokenizer, batch split and checkpoint against one another, running nothing."""
        self.backend.check()
        _require_compilable(self)
        self.model.check(context.is_made, context.locate)
        for location in self.held_out().values():
            if context.is_made(location):
                find_shards(location, context.locate)
        stream = None
        if all(context.is_made(source.shards) for source in self.data.sources.values()):
            stream = TokenStream.open(self.data, context.locate, self.run_seed(context))
            self.objective.build(stream.special, stream.vocabulary_size)
            _require_word_starts(self.objective, stream.reader)
            self.model.check_tokenizer(context.is_made, context.locate, stream.tokenizer_sha256)
            global_batch = self.backend.global_batch
            stream.require_rows(self.budget(stream.rows[0], global_batch) * global_batch)
        if context.key and (context.folder / "checkpoints").is_dir():
            from engine.checkpoint import newest

            # What trains on it reads and verifies the rest.
            found = newest(context.folder / "checkpoints", context.key, verify="sizes")
            if found is not None and stream is not None:
                stream.resume(Cursor.from_json(found.state["cursor"]))

    def held_out(self) -> dict[str, str]:
        """The validation sets' locations by name; none without validation."""
        return dict(self.validation.sets) if self.validation else {}

    def run_seed(self, context: StageContext) -> int:
        """Keys the order, the masks, dropout and fresh weights of this stage."""
        return self.seed if self.seed is not None else keyed(context.seed, context.name) >> 33

    def open_stream(
        self, context: StageContext, verify: Verify = "sizes", share: slice = slice(None)
    ) -> TokenStream:
        """The stage's token rows, in their order; ``share``: of the shards, those hashed here."""
        seed, cache = self.run_seed(context), _packing_cache(context)
        return TokenStream.open(self.data, context.locate, seed, cache, verify, share)

    def budget(self, rows: int, global_batch: int) -> int:
        """Optimizer steps; ``rows`` is the length of the only source where epochs are given."""
        if self.epochs is not None:
            return max(1, ceil(self.epochs * rows / global_batch))
        return self.steps or 0


def _packing_cache(context: StageContext) -> Path:
    """Plans of the whole run side by side: stages that read one corpus share its plan."""
    return context.folder.parent / ".packing"


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a pretraining stage has in hand before its first step.

    Attributes:
        frozen: digest of the weights that do not train; None if all do.
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
    objective = stage.objective.build(stream.special, stream.vocabulary_size)
    _require_word_starts(stage.objective, stream.reader)
    learner, _, tokenizer = build_learner(stage, context, objective)
    _require_tokenizer(tokenizer_sha256(tokenizer.backend_tokenizer), stream)
    longest = stage.data.packing.longest_piece(stage.data.length)
    require_positions(learner.backbone, longest, "data")
    frozen = distributed.on_first(lambda: frozen_digest(learner))
    stage = stage.model_copy(update={"backend": settled(stage, learner)})
    _economise(stage, learner)
    batches = stage.backend.plan(distributed.world())
    penalties = [penalty.build() for penalty in stage.penalties]
    average = stage.averaging.build() if stage.averaging else None
    backend = stage.backend.build(learner, stage.optimizer, penalties, seed, average)
    steps = stage.budget(stream.rows[0], batches.global_batch)
    stream.require_rows(steps * batches.global_batch)
    return Parts(stage, context, stream, objective, backend, batches, steps, seed, frozen)


def _economise(stage: PretrainStage, learner: "Learner") -> None:
    """Recompute layers and compile, as asked; what is exported and counted stays as it is."""
    _require_compilable(stage)
    if stage.activation_checkpointing is not None:
        stage.activation_checkpointing.apply(learner.backbone)
    if stage.compile is not None:
        stage.compile.apply(learner)


def _require_compilable(stage: PretrainStage) -> None:
    values = read_deepspeed(stage.backend.config)
    if stage.compile is not None and values.get("zero_optimization") != AUTO:
        stage.compile.check(zero_stage(values))


def _require_word_starts(objective: ObjectiveConfig, reader: RowReader) -> None:
    if objective.needs_word_starts:
        reader.require_word_starts("the objective's masking policy")


def _require_tokenizer(sha256: str, stream: TokenStream) -> None:
    if sha256 != stream.tokenizer_sha256:
        msg = (
            f"the model's tokenizer has sha256 {sha256[:16]}, the shards were made with "
            f"{stream.tokenizer_sha256[:16]}; prepare the data with the model's tokenizer"
        )
        raise DataError(msg)


def train_from_newest(parts: Parts) -> int:
    """Resume if there is a checkpoint, train to the end; returns the last step.

    Raises:
        Preempted: it was asked to stop; the state is saved.
        NumericalError: steps that are not to be learned from, and no rollback helps.
    """
    from engine import distributed, faults
    from engine.checkpoint import newest
    from engine.oversight import Oversight
    from engine.protocols import Progress
    from engine.rollback import step_back

    oversight = Oversight.of(parts.context, parts.backend, parts.stage.hang_after)
    hooks = make_hooks(parts, oversight)
    root, key = parts.context.folder / "checkpoints", parts.context.key
    found = newest(root, key, distributed)
    progress = Progress() if found is None else restore(parts, hooks, found)
    faults.reached("start")
    with parts.context.stop.heeded(), oversight.watchdog:
        while True:
            try:
                return _train(parts, oversight, hooks, progress)
            except RollBack as asked:
                oversight.watchdog.enter("rollback", asked.steps[-1].step)
                _settle(hooks)
                progress = restore(parts, hooks, step_back(root, key, asked), asked)


def _settle(hooks: Sequence["Hook"]) -> None:
    """No checkpoint is on its way any more."""
    from engine.hooks import CheckpointHook

    for hook in hooks:
        if isinstance(hook, CheckpointHook):
            hook.settle()


def _train(
    parts: Parts, oversight: "Oversight", hooks: Sequence["Hook"], progress: "Progress"
) -> int:
    """From ``progress`` to the last step; RollBack, on all ranks, if the guard asks for it."""
    from engine.batches import Batches
    from engine.hooks import GuardHook, Stragglers
    from engine.loop import train
    from engine.protocols import Run

    memory = _memory(parts)
    timed = [hook.enter for hook in hooks if isinstance(hook, Stragglers)]
    guard = next((hook for hook in hooks if isinstance(hook, GuardHook)), None)

    def make(step: int) -> list["Batch"]:
        return [] if guard and guard.avoids(step) else parts.make(step)

    with Batches(make, progress.step, parts.steps) as batches:
        run = Run(
            parts.backend,
            batches,
            parts.stage.schedule,
            parts.stage.optimizer.lr,
            parts.steps,
            parts.seed,
            hooks,
            guard=guard,
            stop=oversight.stop,
            observers=(oversight.watchdog.enter, memory.enter, *timed),
        )
        with memory.explained():
            return train(run, progress).step


def _memory(parts: Parts) -> "OutOfMemory":
    """What explains a lack of memory in this run."""
    from engine.out_of_memory import MemorySettings, OutOfMemory

    stage, backend = parts.stage, parts.backend
    values, backbone = read_deepspeed(stage.backend.config), backend.learner.backbone
    recomputed = stage.activation_checkpointing
    settings = MemorySettings(
        parts.batches,
        stage.data.length,
        zero_stage(values),
        frozenset(
            part for part in ("optimizer", "param") if offload_device(values, part) != "none"
        ),
        every=recomputed.every if recomputed else None,
        can_recompute=bool(recomputable(backbone)),  # type: ignore[arg-type]  # nn.Module hides it
        is_compiled=stage.compile is not None,
        on_accelerator=backend.device.type != "cpu",
    )
    return OutOfMemory(parts.context.name, backend.rank, settings)


def restore(
    parts: Parts, hooks: Sequence["Hook"], found: "Checkpoint", asked: RollBack | None = None
) -> "Progress":
    """Put weights, optimizer and hooks where the checkpoint left them.

    ``asked``: it is a rollback; the guard avoids what led to it from now on.
    """
    from engine.frozen import require_same_frozen
    from engine.hooks import GuardHook

    require_same_frozen(found.state, parts.frozen, found.folder)
    cursor = Cursor.from_json(found.state["cursor"])
    parts.stream.resume(cursor)
    for hook in hooks:
        # An imported checkpoint knows nothing of most hooks: they begin as in a new run.
        if hook.name in found.state["hooks"]:
            hook.load_state_dict(found.state["hooks"][hook.name])
        if asked and isinstance(hook, GuardHook):
            hook.go_on(asked, found.step)
    return found.restore(parts.backend)


def make_hooks(parts: Parts, oversight: "Oversight") -> list["Hook"]:
    """Checkpoints come last: what is saved is what the others have seen."""
    from engine import frozen
    from engine.hooks import CheckpointHook, MetricsHook, Origin, TensorBoardHook, Throughput

    stage, folder, steps = parts.stage, parts.context.folder, parts.steps
    board = TensorBoardHook(folder / "tensorboard")
    throughput = Throughput(parts.objective.architecture, stage.data.length)
    metrics = MetricsHook(
        folder / "metrics.jsonl", parts.stream.sources, stage.log_every, steps, throughput, [board]
    )
    guard = _guard(parts)
    hooks: list[Hook] = [
        # First: the others shall not see a step that is rolled back.
        *guard,
        Origin(),
        board,
        metrics,
        *_stragglers(parts, board),
        *_validation(parts, oversight, board),
    ]

    def state(progress: "Progress") -> dict[str, Any]:
        index = progress.step * parts.batches.global_batch
        return {
            "cursor": parts.stream.cursor(index).to_json(),
            "hooks": {hook.name: hook.state_dict() for hook in hooks},
            frozen.KEY: parts.frozen,
        }

    root, key, policy = folder / "checkpoints", parts.context.key, stage.checkpoint
    saving = CheckpointHook(root, key, state, policy, steps, oversight.stop, [board])
    if guard:
        saving.first_in_doubt = lambda: guard[0].first_in_doubt
    return [*hooks, saving]


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


def _stragglers(parts: Parts, board: "TensorBoardHook") -> list["Hook"]:
    import socket

    from engine import distributed
    from engine.hooks import Stragglers

    if parts.backend.world == 1:
        return []
    path, every = parts.context.folder / "stragglers.jsonl", parts.stage.log_every
    hosts = distributed.all_gather_object(socket.gethostname())
    return [Stragglers(path, hosts, every, parts.steps, [board])]


def _validation(parts: Parts, oversight: "Oversight", board: "TensorBoardHook") -> list["Hook"]:
    from engine.hooks import ValidationHook

    asked = parts.stage.validation
    if asked is None:
        return []
    sets = {}
    for name, location in asked.sets.items():
        rows = FixedRows.open(
            find_shards(location, parts.context.locate),
            parts.stage.data.length,
            asked.rows,
            parts.stage.data.packing,
            _packing_cache(parts.context),
            shards=parts.stage.data.cache,
        )
        _require_same_tokenizer(name, rows, parts.stream)
        _require_word_starts(parts.stage.objective, rows.reader)
        # Seed 0, whatever the run: the same masks for every stage and every recipe's seed.
        examples = rows.examples(0, len(rows))
        sets[name] = collate_all(parts.objective, examples, parts.batches.micro_batch, 0, 1)
    path = parts.context.folder / "validation.jsonl"
    return [ValidationHook(path, sets, asked.every, parts.steps, [board], oversight.goes_on)]


def _require_same_tokenizer(name: str, rows: FixedRows, stream: TokenStream) -> None:
    if rows.tokenizer.sha256 != stream.tokenizer_sha256:
        msg = (
            f"validation set '{name}' was made with tokenizer {rows.tokenizer.sha256[:16]}, the "
            f"training data with {stream.tokenizer_sha256[:16]}; prepare both with the same one"
        )
        raise DataError(msg)


def export_all(stage: PretrainStage, context: StageContext, step: int) -> str:
    """``export/``, and ``export-average/`` if there is an average; returns a digest of both."""
    trained = export_step(stage, context, step)
    if stage.averaging is None:
        return trained
    averaged = export_step(stage, context, step, weights="average")
    return hashlib.sha256(f"{trained} {averaged}".encode()).hexdigest()


Weights = Literal["trained", "average"]
_EXPORTS: dict[Weights, str] = {"trained": "export", "average": "export-average"}


def export_step(
    stage: PretrainStage,
    context: StageContext,
    step: int,
    folder: Path | None = None,
    weights: Weights = "trained",
) -> str:
    """The checkpoint after ``step`` as a model folder, on this process alone; returns its digest.

    ``folder`` None: the stage's own ``export/``, or ``export-average/``.

    Raises:
        RecipeError: the average is asked for, and the stage keeps none.
        CheckpointError: no such checkpoint, or it is damaged.
    """
    from engine.checkpoint import export_model, open_checkpoint
    from engine.checkpoint.save import step_folder
    from engine.frozen import frozen_digest, require_same_frozen

    checkpoint = open_checkpoint(step_folder(context.folder / "checkpoints", step))
    store = checkpoint.store()
    stream = stage.open_stream(context)
    objective = stage.objective.build(stream.special, stream.vocabulary_size)
    learner, adaptation, tokenizer = build_learner(stage, context, objective)
    require_same_frozen(checkpoint.state, frozen_digest(learner), checkpoint.folder)
    lineage = {
        "stage": context.name,
        "key": context.key,
        "step": step,
        "weights": weights,
        "model": stage.model.model_dump(mode="json"),
        "inputs": {name: artifact.fingerprint for name, artifact in context.inputs.items()},
        "data": stream.fingerprint,
    }
    if origin := checkpoint.state["hooks"].get("origin"):
        lineage["imported"] = origin
    probe = stream.examples(0, 2).tokens.astype(np.int32)
    made = export_model(
        store,
        learner,
        adaptation,
        tokenizer,
        folder or context.folder / _EXPORTS[weights],
        lineage,
        probe,
        _weights_key(stage, weights, store.state_keys),
    )
    return made.fingerprint


def _weights_key(stage: PretrainStage, weights: Weights, there: Sequence[str]) -> str:
    """Under which key the weights stand in a checkpoint that has the states ``there``."""
    from engine.checkpoint.store import WEIGHT

    if weights == "trained":
        return WEIGHT
    if stage.averaging is None:
        msg = "the stage keeps no average of its weights: give it 'averaging', or ask for 'trained'"
        raise RecipeError(msg)
    # Before the first step that is taken there is no optimizer state: the average is the weights.
    if not there:
        return WEIGHT
    return stage.averaging.build().keys[0]
