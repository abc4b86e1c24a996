"""FLOPs counted against the arithmetic done by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adaptation import FrozenLayers, LowRank
from engine.hooks import Throughput
from engine.hooks.throughput import matmul_rate, training_cost
from tests.engine import tiny

LENGTH = 16


def cost(folder: Path, shape: str, **more: Any) -> Any:
    architecture = "causal_lm" if shape.startswith(("gpt2", "llama", "mixtral")) else "masked_lm"
    backbone: Any = tiny.learner(folder, shape, **more).backbone
    return backbone.config, training_cost(backbone, architecture, LENGTH)  # type: ignore[arg-type]  # a literal


def test_bert(tmp_path: Path) -> None:
    config, counted = cost(tmp_path, "bert_tiny")
    d, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    body = layers * (6 * (4 * d * d + 2 * d * inner) + 12 * d * LENGTH)
    assert counted.token == body
    assert counted.target == 6 * (d * d + d * tiny.VOCABULARY)


def test_gpt2_with_its_transposed_layers(tmp_path: Path) -> None:
    config, counted = cost(tmp_path, "gpt2_tiny")
    d, layers = config.n_embd, config.n_layer
    assert counted.token == layers * (6 * 12 * d * d + 6 * d * LENGTH)
    assert counted.target == 6 * d * tiny.VOCABULARY


def test_llama_with_its_gated_layers(tmp_path: Path) -> None:
    config, counted = cost(tmp_path, "llama_tiny")
    d, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * (d // config.num_attention_heads)
    matrices = 2 * d * d + 2 * d * keys + 3 * d * inner
    assert counted.token == config.num_hidden_layers * (6 * matrices + 6 * d * LENGTH)


def test_frozen_weights_have_no_gradient_of_their_own(tmp_path: Path) -> None:
    config, full = cost(tmp_path, "bert_tiny")
    _, lora = cost(tmp_path, "bert_tiny", adaptation=LowRank(rank=2).build(0))
    d, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    updates = layers * (4 * 2 * (d + d) + 2 * 2 * (d + inner))
    attention = layers * 12 * d * LENGTH
    assert lora.token == (full.token - attention) * 4 / 6 + 6 * updates + attention


def test_layers_below_all_that_trains_cost_a_forward_pass_alone(tmp_path: Path) -> None:
    config, counted = cost(tmp_path, "bert_tiny", adaptation=FrozenLayers(layers=1).build(0))
    d, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    matrices = 4 * d * d + 2 * d * inner
    body = (2 + 6 * (layers - 1)) * matrices + layers * 12 * d * LENGTH
    assert counted.token == body


def test_partitioned_weights_count_whole(tmp_path: Path) -> None:
    backbone: Any = tiny.learner(tmp_path, "bert_tiny").backbone
    whole = training_cost(backbone, "masked_lm", LENGTH)
    for parameter in backbone.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert training_cost(backbone, "masked_lm", LENGTH) == whole


def test_utilisation_is_model_flops_over_the_rate_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.hooks.throughput.matmul_rate", lambda device, dtype: 1e9)
    backend: Any = type("Held", (), {"world": 2, "device": torch.device("cpu")})()
    backend.learner = tiny.learner(tmp_path, "bert_tiny")
    throughput = Throughput("masked_lm", LENGTH)
    throughput.start(backend)
    _, counted = cost(tmp_path, "bert_tiny")
    flops = 1000 * counted.token + 150 * counted.target
    assert throughput.utilisation(1000, 150, 4.0) == pytest.approx(flops / (4.0 * 2e9))
    # Of one of the two ranks.
    assert throughput.speed(1000, 150, 4.0) == pytest.approx(flops / 4.0 / 2)


def test_the_rate_is_measured_on_the_device() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    # Any machine that runs torch lies in between.
    assert 1e8 < rate < 1e16
