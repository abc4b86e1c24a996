"""Where a transformer layer's attention and feed-forward part are, by architecture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Sublayers:
    """Names of modules within a layer; none of them is a linear layer, which LoRA would wrap.

    Attributes:
        attention: what calls transformers' attention function.
        attended: its output, or the first of them, is what attention adds to the residual stream.
        fed: the same of the feed-forward part.
        adding: what is given the feed-forward part's inner values and the stream, and adds them,
            in that order; None where the layer itself adds ``fed`` to the stream.
    """

    attention: str
    attended: str
    fed: str
    adding: str | None = None


_BERT = Sublayers("attention.self", "attention.output.dropout", "output.dropout", "output")
_LLAMA = Sublayers("self_attn", "self_attn", "mlp")
_KNOWN = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "modernbert": Sublayers("attn", "attn", "mlp"),
    "gpt2": Sublayers("attn", "attn", "mlp"),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3"), _LLAMA),
}


def sublayers_of(backbone: "nn.Module", what: str) -> Sublayers:
    """Of its architecture; RecipeError if it is not known, beginning with ``what`` asked."""
    config: Any = backbone.config
    if config.model_type not in _KNOWN:
        msg = (
            f"{what}: where to put it into the layers of a {config.model_type} is not known; known "
            f"are {', '.join(sorted(_KNOWN))}; take one of them, or adaptation lora or full"
        )
        raise RecipeError(msg)
    return _KNOWN[config.model_type]
