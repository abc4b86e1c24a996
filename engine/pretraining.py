"""The pretraining stage of a recipe: its keys, and what is checked beforehand."""

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import deepspeed_facts
from configs.deepspeed_json import AUTO, read_deepspeed, zero_stage
from configs.schema import Config
from configs.stage import Runs, StageConfig, StageContext
from data_pipeline import shards, streaming
from data_pipeline.randomness import keyed
from data_pipeline.shards import Verify
from data_pipeline.streaming import DataConfig
from engine.activation_checkpointing import ActivationCheckpointing
from engine.adaptation import AdaptationConfig, FullTraining
from engine.averaging import AveragingConfig
from engine.backends import BackendConfig
from engine.checkpoint_policy import CheckpointConfig
from engine.choice import ChooseConfig
from engine.compilation import Compilation
from engine.earlier import check_earlier
from engine.forgetting import ForgettingConfig
from engine.guarding import GuardConfig
from engine.models import ModelConfig
from engine.objectives import ObjectiveConfig, require_fitting
from engine.optimization import OptimizerConfig, ScheduleConfig
from engine.penalties import PenaltyConfig
from engine.profiling import ProfileConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_pipeline.streaming import RowReader, TokenStream
    from engine.assemble import Parts
    from engine.protocols import Hook
    from engine.watching import Surroundings


class ValidationConfig(Config):
    """Held-out loss during training, on the same rows with the same masks each time."""

    every: PositiveInt = Field(description="steps between two validations")
    rows: PositiveInt = Field(64, description="packed rows read from each set")
    average: bool = Field(
        default=True,
        description="measure the average of the weights, too, where the stage keeps one",
    )
    sets: dict[str, str] = Field(min_length=1, description="name -> location of a shard folder")


class PretrainStage(StageConfig):
    """Continued pretraining (or pretraining from random weights) of one model on one mixture."""

    VERSION: ClassVar[int] = 5
    RUNS: ClassVar[Runs] = "ranks"
    UNKEYED: ClassVar[frozenset[str]] = frozenset(
        {
            "log_every",
            "checkpoint",
            "hang_after",
            "activation_checkpointing",
            "profile",
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
    forgetting: ForgettingConfig | None = None
    choose: ChooseConfig | None = None
    log_every: PositiveInt = 10
    profile: ProfileConfig | None = Field(
        None, description="tell where the time of a few steps goes; true: of steps 5 to 7"
    )
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
        names = [penalty.name for penalty in self.penalties]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = (
                f"penalties: {twice[0]} is given twice; give it once, with the sum of its strengths"
            )
            raise ValueError(msg)
        self._penalties_fit()
        self._prompt_fits()
        self._require_measured()
        return self

    def _penalties_fit(self) -> None:
        names = {penalty.name for penalty in self.penalties}
        if "distillation" in names and (
            self.objective.needs_pairs or getattr(self.objective, "balance", None) is not None
        ):
            msg = (
                "penalties: distillation compares predictions of tokens; give objective mlm "
                "without pairs, or clm without balance"
            )
            raise ValueError(msg)
        if "ewc" in names and self.adaptation.name == "lora":
            msg = (
                "penalties: ewc holds weights that were there when their importance was estimated, "
                "and lora trains new ones alone; give another adaptation, or leave ewc out"
            )
            raise ValueError(msg)

    def _prompt_fits(self) -> None:
        if self.adaptation.name != "prompt":
            return
        if self.data.packing.SHARES_ROWS:
            msg = (
                f"adaptation prompt stands before a row, but packing {self.data.packing.name} puts "
                "several documents into one; give data.packing: {name: single}, or adaptation "
                "prefix"
            )
            raise ValueError(msg)
        if getattr(self.objective, "balance", None) is not None:
            msg = "objective.balance counts the tokens of rows, not a prompt's; leave it out"
            raise ValueError(msg)

    def _require_measured(self) -> None:
        """What is decided by is measured, and what is to be raised is a source."""
        if self.forgetting is not None:
            if self.forgetting.set not in self.held_out():
                msg = (
                    f"forgetting: set '{self.forgetting.set}' is none of validation.sets "
                    f"{list(self.held_out())}"
                )
                raise ValueError(msg)
            for source in self.forgetting.sources():
                self._require_raisable(source)
        known = self.measured()
        if self.choose is not None and not self.choose.by.startswith(tuple(known)):
            msg = (
                f"choose: '{self.choose.by}' is not measured; "
                f"{'expected ' + ', '.join(f'{k}...' for k in known) if known else 'nothing is'}"
            )
            raise ValueError(msg)
        if self.choose is not None:
            self._require_averaged(self.choose.by)

    def _require_averaged(self, by: str) -> None:
        """What an average is chosen by is measured of one that is kept."""
        sets = (f"validation/{name}/average/" for name in self.held_out())
        if not by.startswith(tuple(sets)):
            return
        if self.averaging is None:
            lacking = "the stage keeps no average; give averaging"
        elif self.validation is not None and not self.validation.average:
            lacking = "validation.average is false; leave it out"
        else:
            return
        msg = f"choose: '{by}' is not measured: {lacking}, or choose by the trained weights"
        raise ValueError(msg)

    def _require_raisable(self, source: str) -> None:
        if source not in self.data.sources:
            msg = f"forgetting: source '{source}' is none of data.sources {list(self.data.sources)}"
            raise ValueError(msg)
        if len(self.data.sources) == 1 or not all(
            change.weights[source] for change in self.data.changes
        ):
            msg = (
                f"forgetting: source '{source}' cannot be raised: it is the only one, or "
                "data.changes gives it weight 0"
            )
            raise ValueError(msg)

    def measured(self) -> list[str]:
        """How the names begin of what is measured while it trains: ``validation/SET/``."""
        return [f"validation/{name}/" for name in self.held_out()]

    def more_hooks(self, parts: "Parts", around: "Surroundings") -> "Sequence[Hook]":
        """Hooks of a subclass, which measure before the stage's own decide; none here."""
        del parts, around
        return ()

    def run(self, context: StageContext) -> str:
        """Train to the end of the budget, export, and return the digest of what was exported."""
        from engine import distributed
        from engine.assemble import assemble
        from engine.exporting import export_all
        from engine.training import train_from_newest

        parts = assemble(self, context)
        step = train_from_newest(parts)
        parts.backend.close()
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
        if self.steps is not None:
            self.require_fitting_steps(self.steps)
        require_compilable(self)
        self.model.check(context.is_made, context.locate)
        shared = self.data.packing.SHARES_ROWS
        check_earlier(self.penalties, context.is_made, context.locate, shared_rows=shared)
        self.model.check_rows(context.is_made, context.locate, shared_rows=shared)
        for location in self.held_out().values():
            if context.is_made(location):
                shards.find_shards(location, context.locate)
        stream = None
        if all(context.is_made(source.shards) for source in self.data.sources.values()):
            stream = streaming.TokenStream.open(self.data, context.locate, self.run_seed(context))
            self.objective.build(stream.special, stream.vocabulary_size)
            require_word_starts(self.objective, stream.reader)
            self.model.check_tokenizer(context.is_made, context.locate, stream.tokenizer_sha256)
            global_batch = self.backend.global_batch
            steps = self.budget(stream.rows[0], global_batch)
            self.require_fitting_steps(steps)
            stream.require_rows(steps * global_batch)
        if context.key and (context.folder / "checkpoints").is_dir():
            from engine.checkpoint import newest

            # What trains on it reads and verifies the rest.
            found = newest(context.folder / "checkpoints", context.key, verify="sizes")
            if found is not None and stream is not None:
                cursor = streaming.Cursor.from_json(found.state["cursor"])
                stream.following(cursor).resume(cursor)

    def held_out(self) -> dict[str, str]:
        """The validation sets' locations by name; none without validation."""
        return dict(self.validation.sets) if self.validation else {}

    def run_seed(self, context: StageContext) -> int:
        """Keys the order, the masks, dropout and fresh weights of this stage."""
        return self.seed if self.seed is not None else keyed(context.seed, context.name) >> 33

    def open_stream(
        self, context: StageContext, verify: Verify = "sizes", share: slice = slice(None)
    ) -> "TokenStream":
        """The stage's token rows, in their order; ``share``: of the shards, those hashed here."""
        seed, cache = self.run_seed(context), packing_cache(context)
        return streaming.TokenStream.open(self.data, context.locate, seed, cache, verify, share)

    def budget(self, rows: int, global_batch: int) -> int:
        """Optimizer steps; ``rows`` is the length of the only source where epochs are given."""
        if self.epochs is not None:
            return max(1, ceil(self.epochs * rows / global_batch))
        return self.steps or 0

    def require_fitting_steps(self, steps: int) -> None:
        """RecipeError if schedule or average want more steps than there are.

        The last step is in the schedule's last phase; in mid-run its first one would tell.
        """
        self.schedule.factor(steps - 1, steps)
        if self.averaging is not None:
            self.averaging.build(steps)


def packing_cache(context: StageContext) -> Path:
    """Plans of the whole run side by side: stages that read one corpus share its plan."""
    return context.folder.parent / ".packing"


def require_compilable(stage: PretrainStage) -> None:
    """RecipeError if the stage's ZeRO stage cannot be compiled."""
    values = read_deepspeed(stage.backend.config)
    if stage.compile is not None and values.get("zero_optimization") != AUTO:
        stage.compile.check(zero_stage(values))


def require_word_starts(objective: ObjectiveConfig, reader: "RowReader") -> None:
    """DataError if the objective goes by words and the shards do not say where these begin."""
    if objective.needs_word_starts:
        reader.require_word_starts("the objective's masking policy")
