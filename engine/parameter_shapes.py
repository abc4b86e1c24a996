"""Every weight of a model from its config alone, by arithmetic: nothing is built or imported.

For the architectures that are known here; the shapes are those of transformers' own classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError

if TYPE_CHECKING:
    from engine.protocols import Architecture

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter.

    Attributes:
        name: as transformers names it.
        shape: as it lies in memory.
        linear: (in, out) of the linear layer it is the matrix of; None for anything else.
        head: it belongs to what turns hidden states into predictions, not to the backbone.
        is_table: rows are looked up in it; nothing is multiplied with it.
    """

    name: str
    shape: tuple[int, ...]
    linear: tuple[int, int] | None = None
    head: bool = False
    is_table: bool = False

    @property
    def numel(self) -> int:
        """How many values it has."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What activations depend on.

    Attributes:
        hidden: width of the residual stream.
        ffn: width between the two matrices of a feed-forward layer.
        ffn_matrices: 2, or 3 where a gate is multiplied in.
        heads: of attention.
        queries: the widths of all heads' together; ``keys``: of keys, or of values, which may be
            fewer.
        experts: feed-forward layers a token passes through at each depth.
        dropout: rate of the hidden states'.
    """

    hidden: int
    layers: int
    vocabulary: int
    ffn: int
    ffn_matrices: int
    heads: int
    queries: int
    keys: int
    experts: int
    dropout: float


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as far as arithmetic needs it.

    Attributes:
        weights: each once, though it may serve twice.
        output: name of the matrix onto the vocabulary; None without one.
    """

    model_type: str
    weights: tuple[Weight, ...]
    sizes: Sizes
    output: str | None = None

    @property
    def parameters(self) -> int:
        """How many values there are."""
        return sum(weight.numel for weight in self.weights)

    @property
    def is_decoder(self) -> bool:
        """Whether a token sees only those before it."""
        return (
            self.model_type != "modernbert" and "type_vocab_size" not in _DEFAULTS[self.model_type]
        )


_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "vocab_size": 30522,
        "tie_word_embeddings": True,
        "hidden_dropout_prob": 0.1,
    },
    "modernbert": {
        "hidden_size": 768,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "intermediate_size": 1152,
        "vocab_size": 50368,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
        "mlp_dropout": 0.0,
    },
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "n_inner": None,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
    },
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "intermediate_size": 11008,
        "head_dim": None,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
}
_DEFAULTS["roberta"] = _DEFAULTS["bert"] | {"vocab_size": 50265}
_DEFAULTS["xlm-roberta"] = _DEFAULTS["camembert"] = _DEFAULTS["bert"]
_DEFAULTS["mistral"] = _DEFAULTS["llama"] | {"intermediate_size": 14336, "num_key_value_heads": 8}
_DEFAULTS["mixtral"] = _DEFAULTS["mistral"] | {"num_local_experts": 8, "num_experts_per_tok": 2}
_DEFAULTS["qwen2"] = _DEFAULTS["llama"] | {
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "num_key_value_heads": 32,
}
KNOWN = tuple(sorted(_DEFAULTS))
_DECODERS = {"gpt2", "llama", "mistral", "mixtral", "qwen2"}
_ALIASES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    "mixtral": {"num_experts": "num_local_experts"},
}


def model_shape(
    config: Values, architecture: "Architecture", vocabulary: int | None = None
) -> ModelShape:
    """The weights that transformers would make of a config, without the pooler.

    Args:
        config: the values of a config.json, or a shape; what it leaves out is as in transformers.
        architecture: with which head.
        vocabulary: rows of the embeddings; None: the config's own.

    Raises:
        RecipeError: an architecture that is not known here, or that has no such head.
    """
    kind = str(config.get("model_type"))
    if kind not in _DEFAULTS:
        msg = (
            f"model_type {kind}: its size cannot be told without building it; "
            f"known are {', '.join(KNOWN)}"
        )
        raise RecipeError(msg)
    aliases = _ALIASES.get(kind, {})
    values = _DEFAULTS[kind] | {aliases.get(key, key): value for key, value in config.items()}
    if vocabulary is not None:
        values["vocab_size"] = vocabulary
    make = {"modernbert": _modernbert, "gpt2": _gpt2}.get(
        kind, _bert if "type_vocab_size" in _DEFAULTS[kind] else _llama
    )
    is_decoder = kind in _DECODERS
    if architecture != "encoder" and is_decoder != (architecture == "causal_lm"):
        msg = f"model_type {kind} has no {architecture} head"
        raise RecipeError(msg)
    weights, output = make(values, kind, headed=architecture != "encoder")
    return ModelShape(kind, tuple(weights), _sizes(values, kind), output)


Made = tuple[list[Weight], str | None]


def _linear(name: str, size: tuple[int, int], *, bias: object, head: bool = False) -> list[Weight]:
    """A linear layer's matrix, as torch keeps it ([out, in]), and its bias."""
    inside, out = size
    matrix = Weight(f"{name}.weight", (out, inside), (inside, out), head)
    return [matrix, Weight(f"{name}.bias", (out,), None, head)] if bias else [matrix]


def _norm(name: str, width: int, *, bias: object, head: bool = False) -> list[Weight]:
    weight = Weight(f"{name}.weight", (width,), None, head)
    return [weight, Weight(f"{name}.bias", (width,), None, head)] if bias else [weight]


def _tables(rows: Mapping[str, int], width: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (count, width), is_table=True) for name, count in rows.items()]


def _bert(values: Values, kind: str, *, headed: bool) -> Made:
    width, inner, rows = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    prefix = ("bert." if kind == "bert" else "roberta.") if headed else ""
    at = f"{prefix}embeddings."
    tables = {
        f"{at}word_embeddings": rows,
        f"{at}position_embeddings": values["max_position_embeddings"],
        f"{at}token_type_embeddings": values["type_vocab_size"],
    }
    weights = _tables(tables, width) + _norm(f"{at}LayerNorm", width, bias=True)
    for number in range(values["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{number}"
        for part in ("query", "key", "value"):
            weights += _linear(f"{layer}.attention.self.{part}", (width, width), bias=True)
        weights += _linear(f"{layer}.attention.output.dense", (width, width), bias=True)
        weights += _norm(f"{layer}.attention.output.LayerNorm", width, bias=True)
        weights += _linear(f"{layer}.intermediate.dense", (width, inner), bias=True)
        weights += _linear(f"{layer}.output.dense", (inner, width), bias=True)
        weights += _norm(f"{layer}.output.LayerNorm", width, bias=True)
    if not headed:
        return weights, None
    head = "cls.predictions" if kind == "bert" else "lm_head"
    dense, norm = (
        ("transform.dense", "transform.LayerNorm") if kind == "bert" else ("dense", "layer_norm")
    )
    weights.append(Weight(f"{head}.bias", (rows,), None, head=True))
    weights += _linear(f"{head}.{dense}", (width, width), bias=True, head=True)
    weights += _norm(f"{head}.{norm}", width, bias=True, head=True)
    return _with_output(weights, f"{head}.decoder", values, width, bias=True)


def _with_output(
    weights: list[Weight], name: str, values: Values, width: int, *, bias: bool
) -> Made:
    """The matrix onto the vocabulary: the embeddings again, or one of its own."""
    tied = weights[0].name
    if values["tie_word_embeddings"]:
        return weights, tied
    own = _linear(name, (width, values["vocab_size"]), bias=bias, head=True)
    return weights + own, own[0].name


def _modernbert(values: Values, kind: str, *, headed: bool) -> Made:
    del kind
    width, inner, rows = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    prefix, norms = ("model." if headed else ""), values["norm_bias"]
    weights = _tables({f"{prefix}embeddings.tok_embeddings": rows}, width)
    weights += _norm(f"{prefix}embeddings.norm", width, bias=norms)
    for number in range(values["num_hidden_layers"]):
        layer, biased = f"{prefix}layers.{number}", values["attention_bias"]
        if number:
            weights += _norm(f"{layer}.attn_norm", width, bias=norms)
        weights += _linear(f"{layer}.attn.Wqkv", (width, 3 * width), bias=biased)
        weights += _linear(f"{layer}.attn.Wo", (width, width), bias=biased)
        weights += _norm(f"{layer}.mlp_norm", width, bias=norms)
        weights += _linear(f"{layer}.mlp.Wi", (width, 2 * inner), bias=values["mlp_bias"])
        weights += _linear(f"{layer}.mlp.Wo", (inner, width), bias=values["mlp_bias"])
    weights += _norm(f"{prefix}final_norm", width, bias=norms)
    if not headed:
        return weights, None
    weights += _linear("head.dense", (width, width), bias=values["classifier_bias"], head=True)
    weights += _norm("head.norm", width, bias=norms, head=True)
    if values["decoder_bias"]:
        weights.append(Weight("decoder.bias", (rows,), None, head=True))
    return _with_output(weights, "decoder", values, width, bias=False)


def _gpt2(values: Values, kind: str, *, headed: bool) -> Made:
    del kind
    width = values["n_embd"]
    inner = values["n_inner"] or 4 * width
    prefix = "transformer." if headed else ""
    tables = {f"{prefix}wte": values["vocab_size"], f"{prefix}wpe": values["n_positions"]}
    weights = _tables(tables, width)
    for number in range(values["n_layer"]):
        layer = f"{prefix}h.{number}"
        weights += _norm(f"{layer}.ln_1", width, bias=True)
        weights += _transposed(f"{layer}.attn.c_attn", (width, 3 * width))
        weights += _transposed(f"{layer}.attn.c_proj", (width, width))
        weights += _norm(f"{layer}.ln_2", width, bias=True)
        weights += _transposed(f"{layer}.mlp.c_fc", (width, inner))
        weights += _transposed(f"{layer}.mlp.c_proj", (inner, width))
    weights += _norm(f"{prefix}ln_f", width, bias=True)
    if not headed:
        return weights, None
    return _with_output(weights, "lm_head", values, width, bias=False)


def _transposed(name: str, size: tuple[int, int]) -> list[Weight]:
    """GPT-2 keeps its matrices [in, out]."""
    return [Weight(f"{name}.weight", size, size), Weight(f"{name}.bias", size[1:])]


def _llama(values: Values, kind: str, *, headed: bool) -> Made:
    width, prefix = values["hidden_size"], "model." if headed else ""
    weights = _tables({f"{prefix}embed_tokens": values["vocab_size"]}, width)
    for number in range(values["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}"
        weights += _llama_attention(f"{layer}.self_attn", values, kind)
        feed = _experts if kind == "mixtral" else _gated
        weights += feed(f"{layer}.mlp", values)
        weights += _norm(f"{layer}.input_layernorm", width, bias=False)
        weights += _norm(f"{layer}.post_attention_layernorm", width, bias=False)
    weights += _norm(f"{prefix}norm", width, bias=False)
    if not headed:
        return weights, None
    return _with_output(weights, "lm_head", values, width, bias=False)


def _llama_attention(name: str, values: Values, kind: str) -> list[Weight]:
    width, (queries, others) = values["hidden_size"], _attention_widths(values)
    biased = kind == "llama" and values["attention_bias"]
    weights = _linear(f"{name}.q_proj", (width, queries), bias=biased or kind == "qwen2")
    for part in ("k_proj", "v_proj"):
        weights += _linear(f"{name}.{part}", (width, others), bias=biased or kind == "qwen2")
    return weights + _linear(f"{name}.o_proj", (queries, width), bias=biased)


def _gated(name: str, values: Values) -> list[Weight]:
    width, inner = values["hidden_size"], values["intermediate_size"]
    biased = values["model_type"] == "llama" and values["mlp_bias"]
    return [
        *_linear(f"{name}.gate_proj", (width, inner), bias=biased),
        *_linear(f"{name}.up_proj", (width, inner), bias=biased),
        *_linear(f"{name}.down_proj", (inner, width), bias=biased),
    ]


def _experts(name: str, values: Values) -> list[Weight]:
    """Transformers keeps all experts of a layer in two tensors, which are no linear layers."""
    width, inner = values["hidden_size"], values["intermediate_size"]
    count = values["num_local_experts"]
    return [
        Weight(f"{name}.gate.weight", (count, width)),
        Weight(f"{name}.experts.gate_up_proj", (count, 2 * inner, width)),
        Weight(f"{name}.experts.down_proj", (count, width, inner)),
    ]


def _attention_widths(values: Values) -> tuple[int, int]:
    """Of all queries together, and of all keys (or values)."""
    heads = values["num_attention_heads"]
    each = values.get("head_dim") or values["hidden_size"] // heads
    return heads * each, (values.get("num_key_value_heads") or heads) * each


def _sizes(values: Values, kind: str) -> Sizes:
    if kind == "gpt2":
        width, heads = values["n_embd"], values["n_head"]
        inner, layers = values["n_inner"] or 4 * width, values["n_layer"]
        dropout, queries, keys = values["resid_pdrop"], width, width
    else:
        width, heads = values["hidden_size"], values["num_attention_heads"]
        inner, layers = values["intermediate_size"], values["num_hidden_layers"]
        dropout = values.get("hidden_dropout_prob", values.get("mlp_dropout", 0.0))
        queries, keys = _attention_widths(values)
    return Sizes(
        hidden=width,
        layers=layers,
        vocabulary=values["vocab_size"],
        ffn=inner,
        ffn_matrices=2 if kind == "gpt2" or "type_vocab_size" in _DEFAULTS[kind] else 3,
        heads=heads,
        queries=queries,
        keys=keys,
        experts=values.get("num_experts_per_tok", 1) if kind == "mixtral" else 1,
        dropout=dropout,
    )


def low_rank(shape: ModelShape, rank: int, targets: Sequence[str] | None) -> Iterator[Weight]:
    """The two matrices that LoRA adds beside each linear layer that it wraps.

    Args:
        shape: of the model; the matrix onto the vocabulary is left out, as in peft.
        rank: of the updates.
        targets: ends of module names; None: every linear layer.
    """
    for weight in shape.weights:
        if weight.linear is None or weight.name == shape.output:
            continue
        module = weight.name.removesuffix(".weight")
        if targets is None or any(module == t or module.endswith(f".{t}") for t in targets):
            inside, out = weight.linear
            yield Weight(f"{module}.lora_A.weight", (rank, inside), head=weight.head)
            yield Weight(f"{module}.lora_B.weight", (out, rank), head=weight.head)
