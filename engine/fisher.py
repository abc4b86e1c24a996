"""The stage ``fisher``: how much each weight matters to what a model knows.

The diagonal of the Fisher information (Kirkpatrick et al., 2017): the mean over targets of the
squared gradient of a target's loss, with labels drawn from the model's own predictions. As these
are independent, the square of a batch's summed gradient estimates the sum over the batch without
bias: so it is taken on ZeRO's partitions after the gradients have been reduced, at every stage and
for any number of ranks.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import deepspeed_facts
from configs.deepspeed_json import AUTO, block, precision, read_deepspeed
from configs.errors import CheckpointError, NumericalError, Preempted, RecipeError
from configs.schema import Config
from configs.stage import Runs, StageConfig, StageContext
from data_pipeline.streaming import DataConfig
from engine.backends import BackendConfig
from engine.checkpoint_policy import CheckpointConfig
from engine.earlier import newest_importances, open_importances
from engine.models import ModelConfig
from engine.objectives import ObjectiveConfig, require_fitting
from engine.optimization import AdamW, Constant
from engine.optimization.settings import OptimizerSettings
from engine.penalties.ewc import FISHER
from engine.pretraining import PretrainStage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from engine.assemble import Parts
    from engine.checkpoint.store import FragmentStore
    from engine.objectives.sampled import SampledObjective
    from engine.protocols import Backend, Part, UpdateRule


class OnlineFisher(Config):
    """One running sum over tasks: what it was before, faded, plus the new one.

    Online EWC (Schwarz et al., 2018): the memory does not grow with the tasks, and the anchor is
    the newest model.
    """

    previous: str = Field(description="location of the stage `fisher` before")
    decay: float = Field(0.95, gt=0, le=1, description="share that is kept of what was before")


class FisherStage(StageConfig):
    """Estimates the importances of a model's weights on some text; for the penalty ``ewc``."""

    RUNS: ClassVar[Runs] = "ranks"
    UNKEYED: ClassVar[frozenset[str]] = frozenset(
        {"hang_after", "data.verify", "data.mode", "data.cache"}
    )

    kind: Literal["fisher"] = "fisher"
    model: ModelConfig
    data: DataConfig = Field(description="what the model knows: the general text")
    objective: ObjectiveConfig
    steps: PositiveInt = Field(description="batches of the backend's size that are looked at")
    backend: BackendConfig
    online: OnlineFisher | None = None
    hang_after: PositiveFloat = Field(900.0, description="as of a pretraining stage")
    seed: int | None = Field(None, description="absent: from the recipe's seed and the stage name")

    @model_validator(mode="after")
    def _can_be_estimated(self) -> Self:
        if self.objective.needs_pairs or getattr(self.objective, "balance", None) is not None:
            msg = (
                "fisher: labels are drawn from predictions of tokens; give objective mlm without "
                "pairs, or clm without balance"
            )
            raise ValueError(msg)
        require_fitting(self.objective, self.data.packing)
        return self

    def check(self, context: StageContext) -> None:
        """As a pretraining stage; and that the precision and an earlier estimate will do."""
        values = read_deepspeed(self.backend.config)
        if precision(values) == "fp16":
            msg = (
                f"stage {context.name}: fp16 scales losses and drops steps, which squared "
                "gradients cannot make up for; use fp32 or bf16"
            )
            raise RecipeError(msg)
        if block(values, "bf16").get("bf16_optimizer_states"):
            msg = (
                f"stage {context.name}: backend.config: with bf16_optimizer_states a sum of "
                "squares stops growing at 256 of its terms; leave out that and "
                "bf16_master_weights_and_grads here"
            )
            raise RecipeError(msg)
        if values.get("zero_optimization") == AUTO:
            msg = (
                f"stage {context.name}: backend.config: zero_optimization 'auto' is worked out for "
                "pretraining alone; name a ZeRO stage here"
            )
            raise RecipeError(msg)
        self._training(SampledLabels(self.objective)).check(context)
        if self.online and context.is_made(self.online.previous):
            newest_importances(context.locate(self.online.previous), self.online.previous)

    def keyed_facts(self) -> dict[str, Any]:
        """The config, and of the backend what changes more than rounding."""
        facts = deepspeed_facts.computed(read_deepspeed(self.backend.config))
        return super().keyed_facts() | {"backend": facts}

    def shared_out(self, ranks: int) -> dict[str, str | int]:
        """ZeRO stage, offload, micro-batch, and which backend it is."""
        values = read_deepspeed(self.backend.config)
        return deepspeed_facts.shared_out(values, self.backend.name, ranks)

    def run(self, context: StageContext) -> str:
        """Sum squared gradients, save them, and return a digest of what was saved.

        Interrupted, it begins anew: it is a matter of minutes.
        """
        from engine import distributed
        from engine.assemble import assemble
        from engine.checkpoint import open_checkpoint, save
        from engine.protocols import Progress

        before = self._before(context)
        parts = assemble(self._training(SampledLabels(self.objective)), context)
        if before is not None:
            _require_same_parameters(parts.backend, before)
        targets = _sum_squares(parts, context, self.hang_after)
        _average(parts, targets, before, self.online.decay if self.online else 0.0)
        facts = {"targets": targets, "rows": parts.steps * parts.batches.global_batch}
        root = context.folder / FISHER
        folder = save(root, Progress(parts.steps), parts.backend, facts, context.key)
        parts.backend.close()
        return distributed.on_first(
            lambda: _finish(context.folder, open_checkpoint(folder).store(), facts)
        )

    def _before(self, context: StageContext) -> "FragmentStore | None":
        if self.online is None:
            return None
        return open_importances(self.online.previous, context.locate)

    def _training(self, objective: "SampledLabels") -> PretrainStage:
        """A pretraining stage of the same parts, which clips nothing and learns nothing."""
        values = read_deepspeed(self.backend.config) | {"gradient_clipping": 0.0}
        stage = PretrainStage(
            model=self.model,
            data=self.data,
            objective=self.objective,
            optimizer=AdamW(lr=1.0),
            schedule=Constant(),
            steps=self.steps,
            backend=self.backend,
            checkpoint=CheckpointConfig(every=self.steps),
            hang_after=self.hang_after,
            seed=self.seed,
        )
        backend = self.backend.model_copy(update={"config": values})
        return stage.model_copy(
            update={"backend": backend, "optimizer": SquaredGradients(), "objective": objective}
        )


class SampledLabels:
    """An objective's config, but that labels are drawn from the model's own predictions."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self._config = config
        self.needs_word_starts = config.needs_word_starts
        self.needs_pairs = config.needs_pairs

    def build(self, special: "Mapping[str, int]", vocabulary_size: int) -> "SampledObjective":
        """The objective on such labels."""
        from engine.objectives.sampled import SampledObjective
        from engine.protocols import TokenObjective

        objective = self._config.build(special, vocabulary_size)
        if not isinstance(objective, TokenObjective):
            msg = f"fisher: objective {self._config.name} does not predict tokens alone"
            raise RecipeError(msg)
        return SampledObjective(objective)


class SquaredGradients(OptimizerSettings):
    """An optimizer's settings whose update leaves weights alone and sums squares."""

    lr: float = 1.0
    weight_decay: float = 0.0

    def rules(self) -> "dict[str, UpdateRule]":
        """The only one."""
        return {FISHER: SquaredRule()}


class SquaredRule:
    """An UpdateRule that only looks."""

    keys = (FISHER,)

    def update(self, parts: "Sequence[Part]", lr: float, weight_decay: float) -> None:
        """Add each gradient's square."""
        del lr, weight_decay
        for part in parts:
            gradient = part.gradient.to(part.weight.dtype)
            part.states[FISHER].addcmul_(gradient, gradient)
            part.step.add_(1)


def _require_same_parameters(backend: "Backend", before: "FragmentStore") -> None:
    """CheckpointError unless the estimate before is of the same parameters; before any batch."""
    trained = {name for name, p in backend.learner.named_parameters() if p.requires_grad}
    others = sorted(trained ^ set(before.names)) or [
        piece.name for piece in backend.fragments() if piece.shape != before.shape(piece.name)
    ]
    if others:
        msg = (
            f"fisher: online.previous: {before.folder} is of another model: '{others[0]}' "
            f"({len(others)} such) is missing in one of the two, or has another shape; name a "
            "stage over this model, or leave 'online' out"
        )
        raise CheckpointError(msg)


def _sum_squares(parts: "Parts", context: StageContext, hang_after: float) -> float:
    """Go through the batches; how many targets there were, over all ranks.

    Raises:
        Preempted: it was asked to stop.
        NumericalError: the gradient of a batch is not finite.
    """
    import torch

    from engine.oversight import Oversight

    backend = parts.backend
    oversight = Oversight.of(context, backend, hang_after)
    one = torch.ones((), device=backend.device)
    targets = 0.0
    with context.stop.heeded(), oversight.watchdog:
        for step in range(parts.steps):
            oversight.watchdog.enter("forward", step)
            batches = parts.make(step)
            count = torch.tensor(float(sum(batch.count for batch in batches)), dtype=torch.float64)
            targets += float(backend.sum_over_ranks(count))
            for batch in batches:
                backend.backward(backend.forward(batch), one)
            backend.step(1.0)
            if not torch.as_tensor(backend.gradient_norm()).isfinite():
                msg = f"stage {context.name}: the gradient of batch {step} is not finite"
                raise NumericalError(msg)
            if oversight.stop.agreed():
                msg = f"stage {context.name}: stopped at batch {step + 1}; it will begin anew"
                raise Preempted(msg)
    return targets


def _average(parts: "Parts", targets: float, before: "FragmentStore | None", decay: float) -> None:
    """Sums become means over the targets, on top of what was before."""
    for fragment in parts.backend.fragments():
        if fragment.key != FISHER:
            continue
        fragment.tensor.div_(max(targets, 1.0))
        if before is not None:
            length = fragment.tensor.numel()
            faded = before.read(fragment.name, FISHER, fragment.start, length)
            fragment.tensor.add_(faded.to(fragment.tensor), alpha=decay)


def _finish(folder: "Path", store: "FragmentStore", facts: "Mapping[str, Any]") -> str:
    """``fisher.json``, the mean importance of each parameter; a digest of all of them."""
    digest = hashlib.sha256()
    means = {}
    for name in sorted(store.names):
        values: Tensor = store.whole(name, FISHER)
        if not values.isfinite().all():
            msg = f"{folder / FISHER}: the importance of '{name}' is not finite"
            raise NumericalError(msg)
        means[name] = float(values.mean())
        digest.update(f"{name}|{tuple(values.shape)}|".encode())
        digest.update(values.contiguous().numpy().reshape(-1).view("uint8").data)
        digest.update(store.whole(name).contiguous().numpy().reshape(-1).view("uint8").data)
    text = json.dumps({**facts, "mean_importance": means}, indent=1) + "\n"
    (folder / "fisher.json").write_text(text, encoding="utf-8")
    return digest.hexdigest()
