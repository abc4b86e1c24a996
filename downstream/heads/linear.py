"""One vector of the text, dropout, one matrix."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.randomness import keyed

if TYPE_CHECKING:
    from torch import nn

Pooling = Literal["first", "mean", "max", "last"]


class LinearHead(Config):
    """A linear classifier on pooled hidden states."""

    name: Literal["linear"] = "linear"
    pooling: Pooling = Field("mean", description="which vector stands for the text")
    dropout: float = Field(0.1, ge=0, lt=1)

    def build(self, backbone: "nn.Module", classes: int, seed: int) -> "nn.Module":
        """The head for a backbone; its weights are keyed by ``seed``.

        Raises:
            RecipeError: the first token of a decoder is asked for, which has seen nothing.
        """
        import torch

        from downstream.heads.classifier import Classifier
        from engine.isolation import is_causal

        config: Any = backbone.config
        if self.pooling == "first" and is_causal(config):
            msg = (
                f"head: pooling 'first' of the decoder {config.model_type} sees one token; "
                "use 'last' or 'mean'"
            )
            raise RecipeError(msg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(seed, "head"))
            return Classifier(int(config.hidden_size), classes, self.pooling, self.dropout)
