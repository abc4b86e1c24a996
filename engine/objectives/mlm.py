"""Masked language modelling (Devlin et al., 2019), with any masking policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.masking import DynamicMasking, Masking
from data_pipeline.randomness import generators
from data_pipeline.rows import Rows
from engine.isolation import isolated_inputs
from engine.objectives.pairs import PairsConfig, PairsObjective
from engine.rows import batch_of, shared, stack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Architecture, Batch, LearnerModule, Loss, Objective
    from engine.rows import TargetLosses


class MaskedLanguageModelling(Config):
    """Recover the tokens that a masking policy hides."""

    name: Literal["mlm"] = "mlm"
    masking: Masking = DynamicMasking()
    masked: float = Field(0.8, ge=0, le=1, description="share of targets shown as the mask token")
    random: float = Field(0.1, ge=0, le=1, description="share shown as a random token")
    pairs: PairsConfig | None = Field(
        None, description="predict, too, whether a row's two parts belong together"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.masked + self.random > 1 + 1e-9:
            msg = f"masked {self.masked} + random {self.random} is more than 1"
            raise ValueError(msg)
        return self

    @property
    def needs_word_starts(self) -> bool:
        """Whether the masking policy goes by words: shards without annotations are then refused."""
        return self.masking.needs_word_starts

    @property
    def needs_pairs(self) -> bool:
        """Whether rows must be sentence pairs."""
        return self.pairs is not None

    def build(self, special: Mapping[str, int], vocabulary_size: int) -> "Objective":
        """The objective over a vocabulary.

        Args:
            special: ids by role; ``mask`` is needed, and none of them is drawn as a random token.
            vocabulary_size: ids run below this.

        Raises:
            DataError: the tokenizer has no mask token.
        """
        mask = special.get("mask")
        if mask is None:
            msg = (
                "objective mlm: the tokenizer has no mask token; use an encoder's, or objective clm"
            )
            raise DataError(msg)
        ordinary = np.setdiff1d(np.arange(vocabulary_size, dtype=np.int32), list(special.values()))
        masked = MaskedObjective(self, int(mask), ordinary)
        return masked if self.pairs is None else PairsObjective(self.pairs, masked)


class MaskedObjective:
    """Masks on the CPU, keyed by the example alone; scores the masked positions alone."""

    architecture: "Architecture" = "masked_lm"
    measures = ("accuracy",)

    def __init__(
        self, config: MaskedLanguageModelling, mask_id: int, ordinary: NDArray[np.int32]
    ) -> None:
        self._config = config
        self._mask_id = mask_id
        self._ordinary = ordinary

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head."""
        from torch import nn

        from engine.objectives.vocabulary import prepare

        prepare(backbone)
        return nn.ModuleDict()

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """Masked rows, the flat positions [T] of the targets, and what stood there."""
        import torch

        rows = Rows.of(examples)
        rngs = generators(seed, rows.keys)
        hidden = self._config.masking.choose(rows, rngs)
        at, targets = np.flatnonzero(hidden), np.count_nonzero(hidden, axis=1)
        tensors = stack(rows, sources)
        tokens = tensors["tokens"].numpy().reshape(-1)
        original = tokens[at]
        tokens[at] = self._shown(original, targets, rngs)
        tensors |= {"at": torch.from_numpy(at), "labels": torch.from_numpy(original)}
        return batch_of(tensors, rows.keys.source, targets, rows.layout.filled(), sources)

    def _shown(
        self,
        original: NDArray[np.int64],
        targets: NDArray[np.int64],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.int64]:
        """What stands in the places of targets, int64 [T]: a mask, a random token, or themselves.

        Args:
            original: int64 [T], row by row.
            targets: int64 [B], how many of each row.
            rngs: of each row.
        """
        fate = np.empty(len(original))
        drawn = np.empty(len(original), np.int64)
        first = 0
        for rng, count in zip(rngs, targets.tolist(), strict=True):
            part = slice(first, first + count)
            rng.random(out=fate[part])
            drawn[part] = rng.integers(0, len(self._ordinary), count)
            first += count
        shares = self._config
        random = np.where(fate < shares.masked + shares.random, self._ordinary[drawn], original)
        return np.where(fate < shares.masked, self._mask_id, random)

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy at the targets; the vocabulary head sees nothing else where it can be."""
        return shared(score(learner.backbone, tensors, first=False).losses, tensors)

    def logits(self, backbone: "nn.Module", tensors: Mapping[str, "Tensor"]) -> "Tensor":
        """Scores of all tokens at the targets, [T, V]."""
        seen, output, _ = _at_targets(backbone, tensors, first=False)
        found: Tensor = seen if output is None else output(seen)
        return found

    def told(self, logits: "Tensor", labels: "Tensor", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy of such scores, with these labels."""
        from engine.objectives.vocabulary import losses_of

        return shared(losses_of(logits, labels), tensors)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a backbone makes of a batch.

    Attributes:
        losses: cross-entropy at the flat positions ``at`` [T].
        hidden: [B, L, D], of the last layer; None if nobody asked and the model hides it.
    """

    losses: "TargetLosses"
    hidden: "Tensor | None"

    @property
    def first(self) -> "Tensor":
        """Hidden states of each row's first token, [B, D]."""
        if self.hidden is None:
            msg = "the scores were asked for without the first token's"
            raise ValueError(msg)
        return self.hidden[:, 0]


def score(backbone: "nn.Module", tensors: Mapping[str, "Tensor"], *, first: bool = True) -> Scores:
    """Score a batch; ``first``: ``Scores.first`` will be asked for."""
    from engine.objectives.vocabulary import losses_of, target_losses

    seen, output, hidden = _at_targets(backbone, tensors, first=first)
    if output is None:
        return Scores(losses_of(seen, tensors["labels"]), hidden)
    return Scores(target_losses(output, seen, tensors["labels"]), hidden)


def _at_targets(
    backbone: "nn.Module", tensors: Mapping[str, "Tensor"], *, first: bool
) -> "tuple[Tensor, nn.Module | None, Tensor | None]":
    """What the layer onto the vocabulary is to see, [T, D], and that layer; the hidden states.

    Of an architecture that is not known the logits [T, V] and no layer; and the hidden states are
    None there, unless ``first``.
    """
    inputs = isolated_inputs(backbone, tensors)
    model: Any = backbone
    head = _HEADS.get(model.config.model_type)
    if head is None:
        whole = model(**inputs, **({"output_hidden_states": True} if first else {}))
        logits = whole.logits.flatten(0, 1).index_select(0, tensors["at"])
        return logits, None, whole.hidden_states[-1] if first else None
    hidden: Tensor = model.base_model(**inputs)[0]
    seen = head(model, hidden.flatten(0, 1).index_select(0, tensors["at"]))
    return seen, model.get_output_embeddings(), hidden


def _roberta(model: Any, hidden: "Tensor") -> "Tensor":
    from torch.nn.functional import gelu

    head = model.lm_head
    changed: Tensor = head.layer_norm(gelu(head.dense(hidden)))
    return changed


# What each architecture does to hidden states [T, D] before the layer onto the vocabulary. One
# that is not named here runs whole, with the same result.
_HEADS: dict[str, Callable[[Any, "Tensor"], "Tensor"]] = {
    "bert": lambda model, hidden: model.cls.predictions.transform(hidden),
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "modernbert": lambda model, hidden: model.head(hidden),
}
