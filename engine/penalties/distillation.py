"""Distillation to the base model: predict what it would have said (Li & Hoiem, 2016; Hinton, 2015).

The teacher is frozen and reads the same rows. It is one of the learner's modules, so that ZeRO
stage 3 cuts it over the ranks, too.
"""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from data_pipeline.example import Example
    from engine.protocols import (
        Architecture,
        Batch,
        LearnerModule,
        Loss,
        Objective,
        TokenObjective,
    )

TEACHER = "teacher"
"""The name of its module among the learner's heads."""


class Distillation(Config):
    """``strength`` times the divergence of the model's predictions from the teacher's.

    At each target KL(teacher || model) of both distributions at ``temperature``, times its square,
    which keeps the gradient's size (Hinton et al., 2015). Logits of all targets are held at once,
    for both models.
    """

    ON: ClassVar[Literal["loss"]] = "loss"

    name: Literal["distillation"] = "distillation"
    strength: float = Field(1.0, gt=0)
    teacher: str = Field(description="location of a model with the same tokenizer: the base")
    temperature: float = Field(2.0, gt=0)

    @property
    def keys(self) -> tuple[str, ...]:
        """None: it adds no states."""
        return ()

    @property
    def importances(self) -> tuple[str, ...]:
        """Locations of importances that it takes: none."""
        return ()

    @property
    def teachers(self) -> tuple[str, ...]:
        """Locations of models that it learns from."""
        return (self.teacher,)

    def around(
        self, objective: "Objective", load: "Callable[[str], nn.Module]"
    ) -> "DistilledObjective":
        """The objective with the teacher beside it; ``load`` gives the model at a location.

        Raises:
            RecipeError: the objective has no predictions over the vocabulary to compare.
        """
        from engine.protocols import TokenObjective

        if not isinstance(objective, TokenObjective):
            msg = (
                "penalty distillation compares predictions of tokens: give objective mlm without "
                "pairs, or clm without balance"
            )
            raise RecipeError(msg)

        return DistilledObjective(self, objective, lambda: load(self.teacher))


class DistilledObjective:
    """An objective, and the divergence from a teacher's predictions at its targets.

    Evaluations tell the divergence and leave it out of the loss.
    """

    def __init__(
        self, config: Distillation, objective: "TokenObjective", load: "Callable[[], nn.Module]"
    ) -> None:
        self._config = config
        self._objective = objective
        self._load = load
        self.architecture: Architecture = objective.architecture
        self.measures = (*objective.measures, "token_loss", "divergence")

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """The objective's own, and the teacher.

        Raises:
            RecipeError: the teacher has another vocabulary.
        """
        modules = self._objective.modules(backbone)
        model = self._load()
        _require_same_vocabulary(self._config.teacher, model, backbone)
        modules[TEACHER] = _frozen(model)
        return modules

    def collate(self, examples: "Sequence[Example]", seed: int, sources: int) -> "Batch":
        """As the objective does."""
        return self._objective.collate(examples, seed, sources)

    def loss(self, learner: "LearnerModule", tensors: "Mapping[str, Tensor]") -> "Loss":
        """The objective's loss and the weighted divergence."""
        import torch

        from engine.protocols import Loss
        from engine.rows import summed

        logits = self._objective.logits(learner.backbone, tensors)
        with torch.no_grad():
            theirs = self._objective.logits(learner.heads[TEACHER].model, tensors)  # type: ignore[arg-type]  # a module's attribute
        apart = divergence(logits, theirs, self._config.temperature)
        tokens = self._objective.told(logits, tensors["labels"], tensors)
        told = summed(apart, tensors["at"] // tensors["tokens"].shape[1], tensors["sources"])
        measures = torch.cat([tokens.measures, tokens.by_source[None], told.by_source[None]])
        if not learner.backbone.training:
            return Loss(tokens.total, tokens.by_source, measures)
        strength = self._config.strength
        return Loss(
            tokens.total + strength * told.total,
            tokens.by_source + strength * told.by_source,
            measures,
        )


def divergence(logits: "Tensor", theirs: "Tensor", temperature: float) -> "Tensor":
    """``temperature**2`` x KL(theirs || ours) at that temperature; fp32 [T] from logits [T, V]."""
    from torch.nn.functional import kl_div, log_softmax

    ours = log_softmax(logits.float() / temperature, dim=1)
    wanted = log_softmax(theirs.float() / temperature, dim=1)
    apart = kl_div(ours, wanted, reduction="none", log_target=True).sum(1)
    return apart * temperature**2


def _frozen(model: "nn.Module") -> "nn.Module":
    """The model without gradients, always in evaluation mode."""
    from torch import nn

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.requires_grad_(requires_grad=False).eval()

        def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 -- torch's
            del mode
            return super().train(mode=False)

    return Teacher()


def _require_same_vocabulary(teacher: str, model: "nn.Module", backbone: "nn.Module") -> None:
    ours, theirs = (m.get_input_embeddings().weight.shape[0] for m in (backbone, model))  # type: ignore[operator]  # nn.Module hides it
    if ours != theirs:
        msg = (
            f"penalty distillation: teacher {teacher} has a vocabulary of {theirs}, this model of "
            f"{ours}; name the model that this one began as, with the same tokenizer"
        )
        raise RecipeError(msg)
