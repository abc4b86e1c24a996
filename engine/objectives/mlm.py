"""Masked language modelling (Devlin et al., 2019), with any masking policy."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.example import Example
from data_pipeline.masking import DynamicMasking, Masking
from data_pipeline.randomness import generator
from engine.isolation import isolated_inputs
from engine.rows import batch_of, stack, summed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Architecture, Batch, LearnerModule, Loss


class MaskedLanguageModelling(Config):
    """Recover the tokens that a masking policy hides."""

    name: Literal["mlm"] = "mlm"
    masking: Masking = DynamicMasking()
    masked: float = Field(0.8, ge=0, le=1, description="share of targets shown as the mask token")
    random: float = Field(0.1, ge=0, le=1, description="share shown as a random token")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.masked + self.random > 1 + 1e-9:
            msg = f"masked {self.masked} + random {self.random} is more than 1"
            raise ValueError(msg)
        return self

    def build(self, special: Mapping[str, int], vocabulary_size: int) -> "MaskedObjective":
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
        return MaskedObjective(self, int(mask), ordinary)


class MaskedObjective:
    """Masks on the CPU, keyed by the example alone; scores the masked positions alone."""

    architecture: "Architecture" = "masked_lm"

    def __init__(
        self, config: MaskedLanguageModelling, mask_id: int, ordinary: NDArray[np.int32]
    ) -> None:
        self._config = config
        self._mask_id = mask_id
        self._ordinary = ordinary

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """None: the backbone has its own head."""
        from torch import nn

        del backbone
        return nn.ModuleDict()

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> "Batch":
        """Masked rows, the flat positions [T] of the targets, and what stood there."""
        import torch

        tensors = stack(examples, sources)
        chosen = [self._hide(row, seed, tensors["tokens"][i]) for i, row in enumerate(examples)]
        width = len(examples[0].tokens)
        at = np.concatenate([places + i * width for i, places in enumerate(chosen)])
        original = np.concatenate([row.tokens[p] for row, p in zip(examples, chosen, strict=True)])
        tensors |= {"at": torch.from_numpy(at), "labels": torch.from_numpy(original).long()}
        targets = np.array([len(places) for places in chosen])
        return batch_of(tensors, examples, targets, sources)

    def _hide(self, example: Example, seed: int, tokens: "Tensor") -> NDArray[np.int64]:
        """Overwrite the example's targets in ``tokens`` [L]; return where they are."""
        rng = generator(seed, example.key)
        places = np.flatnonzero(self._config.masking.choose(example, rng))
        fate = rng.random(len(places))
        masked = fate < self._config.masked
        random = ~masked & (fate < self._config.masked + self._config.random)
        drawn = self._ordinary[rng.integers(0, len(self._ordinary), len(places))]
        shown = np.where(masked, self._mask_id, np.where(random, drawn, example.tokens[places]))
        tokens.numpy()[places] = shown
        return places

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Cross-entropy at the targets; the vocabulary head sees nothing else where it can be."""
        from torch.nn.functional import cross_entropy

        logits = target_logits(learner.backbone, tensors)
        losses = cross_entropy(logits.float(), tensors["labels"], reduction="none")
        width = tensors["tokens"].shape[1]
        return summed(losses, tensors["at"] // width, tensors["sources"])


def target_logits(backbone: "nn.Module", tensors: Mapping[str, "Tensor"]) -> "Tensor":
    """Vocabulary logits [T, V] at the flat positions ``at`` [T]."""
    inputs = isolated_inputs(backbone, tensors)
    config: Any = backbone.config
    head = _HEADS.get(config.model_type)
    if head is None:
        logits: Tensor = backbone(**inputs).logits
        return logits.flatten(0, 1).index_select(0, tensors["at"])
    model: Any = backbone
    hidden: Tensor = model.base_model(**inputs)[0].flatten(0, 1)
    return head(model, hidden.index_select(0, tensors["at"]))


# The head of each architecture, from hidden states [T, D] to logits [T, V]. One that is not named
# here runs whole, with the same result.
_HEADS: dict[str, Callable[[Any, "Tensor"], "Tensor"]] = {
    "bert": lambda model, hidden: model.cls(hidden),
    "roberta": lambda model, hidden: model.lm_head(hidden),
    "xlm-roberta": lambda model, hidden: model.lm_head(hidden),
    "camembert": lambda model, hidden: model.lm_head(hidden),
    "modernbert": lambda model, hidden: model.decoder(model.head(hidden)),
}
