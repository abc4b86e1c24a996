"""Documents that share a row do not see one another: block masks and restarted positions.

A 4-D boolean mask under ``sdpa`` isolates exactly; eager attention would add it to the scores as
0 and 1 and leak, so models that offer nothing else are refused.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Tested one by one; any other architecture is probed when it is built.
KNOWN = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "modernbert", "gpt2", "llama", "mixtral"}
)

# Probed in this process, and found to see all of a row: given rows of one document alone.
_alone: set[str] = set()

_FIRST = "_onward_first_position"

PROMPT = "soft_prompt"
"""A module of base models that have learned embeddings in front of the text."""


def isolated_inputs(backbone: "nn.Module", tensors: Mapping[str, "Tensor"]) -> dict[str, Any]:
    """Keyword arguments for a transformers model's forward.

    A mask, or, where the model's attention goes by documents, where these lie.

    Args:
        backbone: the model, for its config and its first position.
        tensors: int64 ``tokens``, ``segments``, ``positions``, each [B, L], and ``parts`` if a
            document has several: they are the token types of a model that tells two apart. Where
            attention goes by documents also ``bounds``, int32 [N + 1].
    """
    from engine.kernels import attention
    from engine.rows import BOUNDS

    config: Any = backbone.config
    inputs: dict[str, Any] = {"input_ids": tensors["tokens"]}
    segments, positions = _behind_prompt(backbone, tensors["segments"], tensors["positions"])
    if config.model_type in _alone:
        inputs["attention_mask"] = (segments > 0).long()
    elif config._attn_implementation == attention.NAME:
        length = tensors["tokens"].shape[1]
        inputs["documents"] = attention.documents_of(tensors[BOUNDS], length)
        inputs["position_ids"] = positions + first_position(backbone)
    else:
        inputs["attention_mask"] = attention_mask(config, segments)
        inputs["position_ids"] = positions + first_position(backbone)
    if "parts" in tensors and getattr(config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = tensors["parts"]
    if is_causal(config):
        inputs["use_cache"] = False
    return inputs


def prompt_length(backbone: "nn.Module") -> int:
    """Learned embeddings that a base model puts in front of each row; it hides them again."""
    prompt = getattr(getattr(backbone, "base_model", backbone), PROMPT, None)
    return 0 if prompt is None else int(prompt.length)


def _behind_prompt(
    backbone: "nn.Module", segments: "Tensor", positions: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """Segments and positions [B, P + L] of a row that begins with P learned embeddings.

    They belong to the row's document; it is the only one.
    """
    import torch

    ahead = prompt_length(backbone)
    if not ahead:
        return segments, positions
    own = torch.arange(ahead, device=positions.device).expand(positions.shape[0], -1)
    first = segments[:, :1].expand(-1, ahead)
    return torch.cat([first, segments], 1), torch.cat([own, positions + ahead], 1)


def is_causal(config: Any) -> bool:
    """True for decoders: the transformers config maps to a causal language model alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(
        getattr(config, "is_decoder", False)
    )


def attention_mask(config: Any, segments: "Tensor") -> "Tensor | dict[str, Tensor]":
    """Who sees whom: bool [B, 1, L, L], or one per kind of layer where a model mixes kinds.

    Padding (segment 0) sees padding, so that no row of the softmax is empty.
    """
    import torch

    same = (segments[:, None, :, None] == segments[:, None, None, :]).clone()
    places = torch.arange(segments.shape[1], device=segments.device)
    distance = places[:, None] - places[None, :]
    causal = is_causal(config)
    if causal:
        same &= distance >= 0
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        msg = f"model {config.model_type}: cannot isolate documents in layers of {sorted(unknown)}"
        raise RecipeError(msg)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return same
    # transformers counts the token itself in a causal window, but not in a two-sided one.
    near: Tensor = same & (distance.abs() < window + (0 if causal else 1))
    return {"full_attention": same, "sliding_attention": near} if kinds else near


def first_position(backbone: "nn.Module") -> int:
    """The position id of a document's first token: 0, or past the padding row as in RoBERTa."""
    known: int | None = getattr(backbone, _FIRST, None)
    if known is None:
        known = _find_first_position(backbone)
        # On the model itself, where a compiler sees a constant.
        setattr(backbone, _FIRST, known)
    return known


def _find_first_position(backbone: "nn.Module") -> int:
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else int(padding) + 1
    return 0


def longest_document(backbone: "nn.Module") -> int | None:
    """The most tokens whose positions the model knows; None where nothing limits it.

    A soft prompt takes some of them.
    """
    rows = getattr(backbone.config, "max_position_embeddings", None)
    if rows is None:
        return None
    return int(rows) - first_position(backbone) - prompt_length(backbone)


def require_positions(backbone: "nn.Module", length: int, what: str) -> None:
    """RecipeError if rows of ``length`` tokens are longer than the model can number."""
    longest = longest_document(backbone)
    if longest is not None and length > longest:
        msg = (
            f"{what}: length is {length}, but the model has positions for {longest} tokens; "
            "shorten the rows, or take a model with more positions"
        )
        raise RecipeError(msg)


def check_isolation(backbone: "nn.Module") -> None:
    """RecipeError if a document's outputs change with its neighbour in the row."""
    config: Any = backbone.config
    if not _isolates(backbone):
        msg = (
            f"model {config.model_type}: documents packed into one row see each other, because it "
            "does not honour a 4-D attention mask; give data.packing: {name: single}, or use "
            "another architecture"
        )
        raise RecipeError(msg)


def allow_alone(backbone: "nn.Module") -> None:
    """Let a model that cannot isolate read rows of one document: by a plain mask of padding."""
    config: Any = backbone.config
    if not _isolates(backbone):
        _alone.add(config.model_type)


def _isolates(backbone: "nn.Module") -> bool:
    """Whether documents in one row do not see one another; those in KNOWN are not probed again."""
    import torch

    config: Any = backbone.config
    if config.model_type in KNOWN:
        return True
    if config.model_type in _alone:
        return False
    was_training = backbone.training
    backbone.eval()
    tokens = torch.arange(8, 24) % int(config.vocab_size)
    changed = tokens.clone()
    changed[8:] = tokens[8:].flip(0)
    place = next(backbone.parameters()).device
    rows = {
        "tokens": torch.stack([tokens, changed]).to(place),
        "segments": torch.tensor([[1] * 8 + [2] * 8] * 2).to(place),
        "positions": torch.tensor([[*range(8), *range(8)]] * 2).to(place),
    }
    try:
        with torch.no_grad():
            first, second = backbone(**isolated_inputs(backbone, rows))[0][:, :8].float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        # It does not take such a mask, or positions, at all.
        return False
    finally:
        backbone.train(was_training)
    return bool(torch.allclose(first, second, atol=1e-5))
