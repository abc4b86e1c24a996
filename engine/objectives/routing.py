"""Balance among the experts of a mixture (Fedus et al., 2021), told row by row.

The paper's loss is a product of two means over a batch, so it depends on which rows share a
micro-batch. Taken over the tokens of one row, and weighted by the row's targets, it does not: a
step's loss is the same for every split of its rows over ranks and accumulation (sequence-wise
balance: DeepSeek-AI, 2024, arXiv:2412.19437).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

# Their routers tell their logits, their heads are one layer; tested one by one.
ROUTED = frozenset({"mixtral", "olmoe", "qwen3_moe"})


class RouterBalance(Config):
    """How much unequal use of the experts counts."""

    weight: float = Field(
        0.01, gt=0, description="of the balance loss, beside the next tokens'; as in the paper"
    )


def require_routers(backbone: "nn.Module") -> None:
    """RecipeError unless the model is a mixture of experts whose routers can be read."""
    config: Any = backbone.config
    if config.model_type not in ROUTED:
        msg = (
            f"objective.balance: model {config.model_type} is no mixture of experts that is known "
            f"({', '.join(sorted(ROUTED))}); remove balance"
        )
        raise RecipeError(msg)


def routed(backbone: "nn.Module", inputs: dict[str, Any]) -> tuple["Tensor", Sequence["Tensor"]]:
    """Hidden states of the last layer, [B, L, D], and each layer's logits over experts, [BL, E]."""
    model: Any = backbone
    # Not through the model's own forward: that would take the 4-D mask for one of padding.
    outputs = model.base_model(**inputs, output_router_logits=True)
    return outputs.last_hidden_state, outputs.router_logits


def imbalance(layers: Sequence["Tensor"], chosen: int, real: "Tensor") -> "Tensor":
    """How unequally each row uses the experts, fp32 [B], with gradient.

    The mean over layers of E * sum_i f_i P_i: f_i is how often expert i is chosen by a token of
    the row, P_i its mean probability there. ``chosen`` if they are used alike, as in transformers.

    Args:
        layers: router logits [B * L, E] of each layer.
        chosen: experts a token goes to.
        real: bool [B, L], which tokens are no padding.
    """
    import torch

    share = real.float() / real.sum(1, keepdim=True).clamp(min=1)
    total = torch.zeros(real.shape[0], device=real.device)
    for logits in layers:
        probabilities = logits.float().softmax(-1)
        best = probabilities.detach().topk(chosen, dim=-1).indices
        used = torch.zeros_like(probabilities).scatter(-1, best, 1.0)
        of_row = [
            (value.view(*real.shape, -1) * share[..., None]).sum(1)
            for value in (used, probabilities)
        ]
        total = total + logits.shape[-1] * (of_row[0] * of_row[1]).sum(-1)
    return total / len(layers)
