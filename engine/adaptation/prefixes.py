"""Learned keys and values, and the attention function that puts them in front of a layer's own.

Documents that share a row all see them, and still not one another: the block mask gets columns in
which everything is visible.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from configs.errors import RecipeError
from engine.adaptation.sublayers import sublayers_of
from engine.additions import Adding
from engine.layers import layer_list

if TYPE_CHECKING:
    from engine.adaptation.prefix import Prefix

NAME = "prefix"
"""In transformers' table of attention functions, and of the module within an attention."""
_SPREAD = 0.02


class KeysAndValues(nn.Module):
    """Keys and values, each [length, heads * size]."""

    def __init__(self, length: int, heads: int, size: int) -> None:
        super().__init__()
        self.length = length
        self.key = nn.Parameter(torch.empty(length, heads * size))
        self.value = nn.Parameter(torch.empty(length, heads * size))
        nn.init.normal_(self.key, std=_SPREAD)
        nn.init.normal_(self.value, std=_SPREAD)

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, L, D] -> [B, K, length + L, D]."""
        return _joined(self.key, key), _joined(self.value, value)


def _joined(own: Tensor, given: Tensor) -> Tensor:
    rows, heads, _, size = given.shape
    ahead = own.view(-1, heads, size).transpose(0, 1).to(given.dtype)
    return torch.cat([ahead.expand(rows, -1, -1, -1), given], dim=2)


class PrefixAdaptation(Adding):
    """A module of keys and values in every attention."""

    def __init__(self, config: "Prefix", seed: int) -> None:
        super().__init__(config, seed)
        self._config = config

    def insert(self, backbone: nn.Module) -> tuple[str, ...]:
        """And the model attends by this file's function from now on."""
        places = sublayers_of(backbone, "adaptation prefix")
        path, layers = layer_list(backbone)
        model: Any = backbone
        config = model.config
        if config._attn_implementation != "sdpa":
            msg = (
                f"adaptation prefix: the model attends by {config._attn_implementation}; "
                "expected sdpa"
            )
            raise RecipeError(msg)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        names = []
        for number, layer in enumerate(layers):
            attention = layer.get_submodule(places.attention)
            attention.add_module(NAME, KeysAndValues(self._config.length, heads, size))
            names.append(f"{path}.{number}.{places.attention}.{NAME}")
        _use(model)
        return tuple(names)


def _use(model: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, H, L, D], key and value [B, K, S, D] -> [B, L, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = _causal(query, key)
    prefix: Any = module.get_submodule(NAME)
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (prefix.length, 0), value=seen)
    key, value = prefix(key, value)
    attended, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, is_causal=False, **others
    )
    return attended, None


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """Bool [1, 1, L, S]: the last query sees all keys, the one before it one less."""
    length, there = query.shape[2], key.shape[2]
    mask = torch.ones(length, there, dtype=torch.bool, device=query.device)
    return mask.tril(there - length)[None, None]
