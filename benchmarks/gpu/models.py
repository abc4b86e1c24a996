"""The models that are trained, as published, and the goals on one H200."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the table.

    Attributes:
        shape: as in transformers' config.json, without the vocabulary.
        vocabulary: ids of the tokenizer that is made for it.
        length: tokens in a row.
        rows: the most rows that a micro-batch is tried with.
        goal, stretch: tokens a second on one H200.
    """

    name: str
    shape: dict[str, Any]
    vocabulary: int
    length: int
    objective: Literal["mlm", "clm"]
    rows: int
    goal: float
    stretch: float

    def tiny(self) -> "Model":
        """The same architecture in a size for a test."""
        small = {"hidden_size": 32, "n_embd": 32, "intermediate_size": 64, "n_inner": 64}
        small |= {"num_hidden_layers": 2, "n_layer": 2, "num_attention_heads": 4, "n_head": 4}
        small |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "n_positions": 32}
        shape = {key: small.get(key, value) for key, value in self.shape.items()}
        return replace(self, shape=shape, vocabulary=128, length=32, rows=4)


def _bert(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Devlin et al. (2019), as in the published config.json."""
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }


_GPT = {
    "model_type": "gpt2",
    "n_embd": 2048,
    "n_layer": 24,
    "n_head": 16,
    "n_inner": 8192,
    "n_positions": 2048,
}
"""GPT-3 XL of Brown et al. (2020), with heads of 128: its table's 24 heads do not divide 2048."""
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
"""Llama 3 8B (Grattafiori et al., 2024), as in the published config.json."""
MODELS = (
    Model("bert_base", _bert(768, 12, 12), 30522, 512, "mlm", 128, 600e3, 740e3),
    Model("bert_large", _bert(1024, 24, 16), 30522, 512, "mlm", 64, 209e3, 238e3),
    Model("gpt_1.3b", _GPT, 50304, 2048, "clm", 16, 54.5e3, 60e3),
    Model("llama_8b", _LLAMA, 128256, 4096, "clm", 8, 9.0e3, 9.9e3),
)
"""GPT-2's 50257 ids are rounded up to a multiple of 64."""
SMALL_MLM = Model("small_mlm", _bert(512, 4, 8), 8192, 256, "mlm", 16, 0.0, 0.0)
SMALL_CLM = Model(
    "small_clm",
    {
        **_LLAMA,
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1408,
    },
    8192,
    256,
    "clm",
    16,
    0.0,
    0.0,
)
"""What the checks train."""
