"""Attention within documents that share rows: no token's score with another document is computed.

On a GPU by torch's flash kernel for sequences of any length (``varlen_attn``; Dao, 2023). On a CPU
documents of like length are multiplied together; torch's kernels there compute the whole square of
a row and, with dropout, need a multiple of the time of their products (benchmarks/LOG.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.kernels import dropout as dropping

if TYPE_CHECKING:
    from torch import nn

NAME = "documents"
"""In transformers' table of attention functions."""
LONGEST = 1024
"""Longer rows, in tokens, would keep too large a square of probabilities on a CPU."""
_HALF = (torch.bfloat16, torch.float16)
_WIDEST = 256
_SHARES_KEYS = "enable_gqa"
"""torch 2.11's kernel does not know it yet."""
KNOWN = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "modernbert", "gpt2", "llama", "mixtral"}
)
"""They hand ``documents`` on to their attention; tested one by one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that a CPU multiplies together, N of them, the longest of M tokens.

    Attributes:
        tokens: int64 [N, M], flat positions in the batch; what is too much points to 0.
        beyond: bool [N, M], which are too much; None: all documents have M tokens.
    """

    tokens: Tensor
    beyond: Tensor | None


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the documents of a batch of rows lie.

    Attributes:
        bounds: int32 [N + 1], flat positions at which they begin, and the end; padding at a row's
            end is one of them.
        longest: no document is longer.
        groups: for a CPU.
    """

    bounds: Tensor
    longest: int
    groups: Sequence[Group] = ()


def suits(backbone: "nn.Module", device: torch.device, dtype: torch.dtype, length: int) -> bool:
    """Whether a model's attention can and should go by documents.

    Args:
        backbone: a transformers model.
        device: that it will be on.
        dtype: of its weights there.
        length: tokens in a row.
    """
    from engine.isolation import prompt_length

    config: Any = backbone.config
    if config._attn_implementation != "sdpa" or config.model_type not in KNOWN:
        return False
    if prompt_length(backbone):
        # It stands in no batch's documents.
        return False
    if device.type == "cpu":
        return length <= LONGEST
    # The flash kernel has no dropout.
    rates = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    quiet = not any(getattr(config, rate, 0.0) for rate in rates)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fits = quiet and dtype in _HALF and width % 8 == 0 and width <= _WIDEST
    return fits and device.type == "cuda" and _has_flash(device)


def _has_flash(device: torch.device) -> bool:
    """Whether this GPU and this torch have the kernel, with all that is asked of it."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= _taken_by(varlen_attn)


@cache
def _taken_by(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def use(backbone: Any) -> None:
    """Let a transformers model compute its attention by documents from now on.

    It must be given ``documents=`` then, and no mask.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    backbone.set_attn_implementation(NAME)
    # GPT-2 would look for padding in each batch, and wait for the device, as it is given no mask.
    backbone.base_model.warn_if_padding_and_no_attention_mask = _no_warning


def _no_warning(*tokens: Any) -> None:
    """Nothing is missing."""
    del tokens


def documents_of(bounds: Tensor, length: int) -> Documents:
    """From the bounds of a batch, int32 [N + 1], on its device; rows have ``length`` tokens."""
    groups = _groups(bounds) if bounds.device.type == "cpu" else ()
    return Documents(bounds, length, groups)


def _groups(bounds: Tensor) -> list[Group]:
    """Documents of like length together: at most an eighth of a group's tokens are too much."""
    starts, lengths = bounds[:-1].long(), bounds.diff().long()
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    groups, first = [], 0
    while first < len(sizes):
        most = sizes[first]
        last = first + 1
        while last < len(sizes) and sizes[last] >= most - max(8, most // 8):
            last += 1
        chosen = order[first:last]
        groups.append(_group(starts[chosen], lengths[chosen], most))
        first = last
    return groups


def _group(starts: Tensor, lengths: Tensor, most: int) -> Group:
    places = torch.arange(most)
    beyond = places >= lengths[:, None]
    tokens = (starts[:, None] + places).masked_fill_(beyond, 0)
    return Group(tokens, beyond if bool(beyond.any()) else None)


def attend(  # noqa: PLR0913 -- transformers' own signature
    module: "nn.Module",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, H, L, D], key and value [B, K, L, D] -> [B, L, H, D]."""
    del attention_mask, others
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    way = Way(causal, sliding_window, scale, dropout)
    if query.device.type != "cpu":
        return _flash((query, key, value), documents, way), None
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    flat = [part.transpose(1, 2).contiguous() for part in (query, key, value)]
    attended: Tensor = _ByDocuments.apply(*flat, documents, way)  # type: ignore[no-untyped-call]  # torch's own
    return attended, None


@dataclass(frozen=True, slots=True)
class Way:
    """How a layer attends within a document.

    Attributes:
        causal: a token sees none that comes after it.
        window: nor any that is so far away, or farther; None: all.
        scale: of the scores.
        rate: of dropout.
    """

    causal: bool
    window: int | None
    scale: float
    rate: float

    @property
    def sides(self) -> tuple[int, int]:
        """How many tokens a token sees to the left and to the right; -1: all."""
        left = -1 if self.window is None else self.window - 1
        return left, 0 if self.causal else left

    def bias(self, size: int) -> Tensor | None:
        """What is added to scores [N, size, size], fp32; None if every token sees all."""
        left, right = (size if side < 0 else side for side in self.sides)
        if left >= size - 1 and right >= size - 1:
            return None
        places = torch.arange(size)
        ahead = places[None, :] - places[:, None]
        hidden = (ahead > right) | (ahead < -left)
        return torch.zeros(1, size, size).masked_fill_(hidden, -torch.inf)


def _flash(parts: Sequence[Tensor], documents: Documents, way: Way) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, size = parts[0].shape
    shared = heads // parts[1].shape[1]
    more: dict[str, Any] = {}
    if shared > 1 and _SHARES_KEYS in _taken_by(varlen_attn):
        more[_SHARES_KEYS] = True
    elif shared > 1:
        parts = (parts[0], *(part.repeat_interleave(shared, dim=1) for part in parts[1:]))
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in parts)
    bounds, longest = documents.bounds, documents.longest
    attended: Any = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=way.scale,
        window_size=way.sides,
        **more,
    )
    answer: Tensor = attended.view(rows, length, heads, size)
    return answer


class _ByDocuments(torch.autograd.Function):
    """(query, key, value [B, L, H, D], ...) -> [B, L, H, D]; keeps probabilities for backward."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *parts, documents, way = given
        answer = _Gathered.empty(parts[0])
        kept: list[Tensor] = []
        for group in documents.groups:
            gathered = _Gathered(group, parts)
            attended, *saved = _forward(gathered, way)
            gathered.put(attended, answer)
            kept += saved
        ctx.save_for_backward(*parts, *kept)
        ctx.given = documents, way
        return _Gathered.cut(answer, parts[0])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        documents, way = ctx.given
        parts = [query, key, value, slopes[0].contiguous()]
        answers = [_Gathered.empty(query) for _ in range(3)]
        saved = iter(kept)
        for group in documents.groups:
            gathered = _Gathered(group, parts)
            probabilities, bits = next(saved), next(saved) if way.rate else None
            changes = _backward(gathered, way, probabilities, bits)
            for change, answer in zip(changes, answers, strict=True):
                gathered.put(change, answer)
        return (*(_Gathered.cut(answer, query) for answer in answers), None, None)


class _Gathered:
    """A group's share of tensors [B, L, H, D], each as [N * H, M, D]."""

    def __init__(self, group: Group, parts: Sequence[Tensor]) -> None:
        rows, length, self.heads, width = parts[0].shape
        self.beyond = group.beyond
        self.size = group.tokens.shape[1]
        heads = torch.arange(self.heads)[:, None]
        places = (group.tokens[:, None, :] * self.heads + heads).flatten()
        self.parts = [
            part.view(-1, width).index_select(0, places).view(-1, self.size, width)
            for part in parts
        ]
        self._places = places
        if group.beyond is not None:
            into = group.tokens.masked_fill(group.beyond, rows * length)
            self._places = (into[:, None, :] * self.heads + heads).flatten()

    @staticmethod
    def empty(part: Tensor) -> Tensor:
        """Room for all tokens, and for one more, which takes what groups have too much."""
        rows, length, heads, width = part.shape
        return part.new_empty((rows * length + 1) * heads, width)

    @staticmethod
    def cut(room: Tensor, part: Tensor) -> Tensor:
        """Without the one more, in the part's shape."""
        return room[: -part.shape[2]].view(part.shape)

    def put(self, values: Tensor, room: Tensor) -> None:
        """Values [N * H, M, D] to their places."""
        room.index_copy_(0, self._places, values.view(-1, values.shape[-1]))

    def hide(self, scores: Tensor) -> None:
        """Let nobody see what the group has too much: scores [N * H, M, M], in place."""
        if self.beyond is None:
            return
        whole = scores.view(-1, self.heads, self.size, self.size)
        lacking = torch.zeros(self.beyond.shape).masked_fill_(self.beyond, -torch.inf)
        whole.add_(lacking[:, None, None])
        # What is too much may see nobody through a window, and no softmax is of nothing.
        whole.masked_fill_(self.beyond[:, None, :, None], 0.0)

    def blank(self, slopes: Tensor) -> None:
        """And nothing come back from there: [N * H, M, D], in place."""
        if self.beyond is not None:
            whole = slopes.view(-1, self.heads, self.size, slopes.shape[-1])
            whole.masked_fill_(self.beyond[:, None, :, None], 0)


def _forward(gathered: _Gathered, way: Way) -> tuple[Tensor, ...]:
    """Of a group: what was attended to, the probabilities, and of dropout the bits."""
    query, key, value = gathered.parts
    # Scores in fp32: in bf16 they would be told to one part in 256 alone.
    products = query.float(), key.float().transpose(1, 2)
    bias = way.bias(gathered.size)
    if bias is None:
        nothing = query.new_empty(1, dtype=torch.float32)
        scores = torch.baddbmm(nothing, *products, beta=0, alpha=way.scale)
    else:
        scores = torch.baddbmm(bias, *products, alpha=way.scale)
    gathered.hide(scores)
    probabilities = scores.softmax(-1).to(query.dtype)
    if not way.rate:
        return torch.bmm(probabilities, value), probabilities
    kept = dropping.draw(probabilities.numel(), way.rate)
    attended = torch.bmm(kept.keep_(probabilities.clone()), value)
    return attended.mul_(kept.scale), probabilities, kept.bits


def _backward(
    gathered: _Gathered, way: Way, probabilities: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a group: the gradients of query, key and value."""
    query, key, value, slopes = gathered.parts
    gathered.blank(slopes)
    kept = None if bits is None else dropping.kept_of(bits, way.rate)
    used = probabilities
    if kept:
        slopes.mul_(kept.scale)
        used = kept.keep_(probabilities.clone())
    of_value = torch.bmm(used.transpose(1, 2), slopes)
    inner = torch.bmm(slopes, value.transpose(1, 2))
    if kept:
        kept.keep_(inner)
    of_scores = torch._softmax_backward_data(inner, probabilities, -1, inner.dtype)
    of_query = torch.bmm(of_scores, key).mul_(way.scale)
    of_key = torch.bmm(of_scores.transpose(1, 2), query).mul_(way.scale)
    return of_query, of_key, of_value
