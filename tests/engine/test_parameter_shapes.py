"""Shapes by arithmetic, held against the models that transformers builds."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from configs.errors import RecipeError
from engine.models import SHAPES, read_shape
from engine.parameter_shapes import KNOWN, low_rank, model_shape

AUTO = {
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "encoder": "AutoModel",
}
DECODERS = {"gpt2", "llama", "mistral", "mixtral", "qwen2"}
UNUSUAL: list[dict[str, Any]] = [
    {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 64,
        "num_key_value_heads": 8,
    },
    {
        "model_type": "modernbert",
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "decoder_bias": False,
        "classifier_bias": True,
    },
    {"model_type": "gpt2", "n_inner": 1000, "hidden_size": 96, "num_hidden_layers": 3},
    {"model_type": "mixtral", "num_local_experts": 3, "num_hidden_layers": 2},
    {"model_type": "qwen2", "num_key_value_heads": 4, "num_hidden_layers": 2},
]


def built(config: dict[str, Any], architecture: str) -> Any:
    values = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, AUTO[architecture]).from_config(values)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def head(model_type: str) -> Any:
    return "causal_lm" if model_type in DECODERS else "masked_lm"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("model_type", KNOWN)
def test_published_defaults_are_those_of_transformers(
    model_type: str, headed: bool, tied: bool
) -> None:
    config = {"model_type": model_type, "tie_word_embeddings": tied, "num_hidden_layers": 2}
    architecture = head(model_type) if headed else "encoder"
    compare(config, architecture)


@pytest.mark.parametrize("config", UNUSUAL, ids=lambda config: config["model_type"])
def test_unusual_ones(config: dict[str, Any]) -> None:
    compare(config, head(config["model_type"]))


@pytest.mark.parametrize("name", sorted(path.stem for path in SHAPES.glob("*.json")))
def test_the_shapes_that_come_along(name: str) -> None:
    config = read_shape(name) | {"vocab_size": 60_000}
    compare(config, head(config["model_type"]))
    given = read_shape(name)
    assert model_shape(given, head(given["model_type"]), 60_000).parameters == (
        model_shape(config, head(given["model_type"])).parameters
    )


def compare(config: dict[str, Any], architecture: Any) -> None:
    model, shape = built(config, architecture), model_shape(config, architecture)
    real = {name: tuple(p.shape) for name, p in model.named_parameters()}
    told = {weight.name: weight.shape for weight in shape.weights}
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    # Of two tied weights transformers names one, here this and there that.
    assert sorted(real.values()) == sorted(told.values())
    assert len(real.keys() ^ told.keys()) in {0, 2}


@pytest.mark.parametrize("model_type", sorted(set(KNOWN) - {"mixtral"}))
def test_low_rank_updates_are_those_of_peft(model_type: str) -> None:
    config = {"model_type": model_type, "num_hidden_layers": 2}
    model = built(config, head(model_type))
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    settings = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=transposed)
    with torch.device("meta"):
        adapted = inject_adapter_in_model(settings, model)
    real = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    shape = model_shape(config, head(model_type))
    assert sum(weight.numel for weight in low_rank(shape, 4, None)) == real


def test_what_is_not_known_is_told() -> None:
    with pytest.raises(RecipeError, match=r"model_type t5: .* known are bert, camembert"):
        model_shape({"model_type": "t5"}, "encoder")
    with pytest.raises(RecipeError, match="gpt2 has no masked_lm head"):
        model_shape({"model_type": "gpt2"}, "masked_lm")
