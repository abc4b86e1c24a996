"""Depths of parameters, over all architectures that are tested, and some that are odd."""

from itertools import groupby

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from configs.errors import RecipeError
from engine.adaptation import Adapter, LowRank, Prefix, Prompt
from engine.layers import layer_of
from engine.models import read_shape
from engine.parameter_shapes import model_shape
from engine.trained_part import depth_of
from tests.engine import tiny

EMBEDDINGS = ("embeddings", "wte", "wpe", "embed_tokens")
ABOVE = ("cls", "lm_head", "head", "decoder", "final_norm", "ln_f", "norm")


@pytest.mark.parametrize("adaptation", [None, LowRank(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_every_parameter_has_its_depth(tmp_path, shape, adaptation):
    backbone = tiny.learner(tmp_path, shape, adaptation and adaptation.build(0)).backbone
    depths = layer_of(backbone)
    assert list(depths) == [name for name, _ in backbone.named_parameters()]
    layers = backbone.config.num_hidden_layers
    for name, depth in depths.items():
        below_base = name.removeprefix(f"{backbone.base_model_prefix}.")
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers:
            assert depth == numbers[0] + 1
        elif below_base.split(".")[0] in EMBEDDINGS:
            assert depth == 0, name
        else:
            assert below_base.split(".")[0] in ABOVE
            assert depth == layers + 1, name
    assert [depth for depth, _ in groupby(sorted(depths.values()))] == list(range(layers + 2))


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_what_was_added_belongs_where_it_was_put(tmp_path, shape):
    prompted = tiny.learner(tmp_path, shape, Prompt(length=2).build(0)).backbone
    assert {d for name, d in layer_of(prompted).items() if "soft_prompt" in name} == {0}
    for adaptation, part in ((Prefix(length=2), ".prefix."), (Adapter(size=2), "_adapter.")):
        backbone = tiny.learner(tmp_path, shape, adaptation.build(0)).backbone
        found = {depth for name, depth in layer_of(backbone).items() if part in name}
        assert found == set(range(1, backbone.config.num_hidden_layers + 1))


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_matrix_onto_the_vocabulary(tmp_path, shape):
    backbone = tiny.learner(tmp_path, shape).backbone
    depths = layer_of(backbone)
    output = backbone.get_output_embeddings().weight
    name = next(name for name, parameter in backbone.named_parameters() if parameter is output)
    tied = output is backbone.get_input_embeddings().weight
    assert depths[name] == (0 if tied else backbone.config.num_hidden_layers + 1)


def made(auto, kind, **sizes):
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(kind, **sizes))


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50}


def test_what_prepares_the_embeddings_and_what_comes_last_in_odd_models():
    electra = layer_of(made(AutoModelForMaskedLM, "electra", embedding_size=16, **SMALL))
    assert electra["electra.embeddings_project.weight"] == 0
    assert electra["generator_predictions.dense.weight"] == 4
    opt = layer_of(made(AutoModelForCausalLM, "opt", word_embed_proj_dim=16, ffn_dim=32, **SMALL))
    assert opt["model.decoder.project_in.weight"] == 0
    assert opt["model.decoder.project_out.weight"] == 4
    assert opt["model.decoder.layers.2.fc1.weight"] == 3
    base = layer_of(made(AutoModel, "deberta-v2", intermediate_size=32, **SMALL))
    assert base["encoder.layer.0.output.dense.weight"] == 1
    assert base["embeddings.word_embeddings.weight"] == 0


def test_shared_layers_and_two_piles_are_refused():
    with pytest.raises(RecipeError, match="albert: cannot tell its layers"):
        layer_of(made(AutoModelForMaskedLM, "albert", **SMALL))
    with pytest.raises(RecipeError, match="t5: cannot tell its layers"):
        layer_of(made(AutoModel, "t5", d_model=32, num_layers=2, num_heads=2, vocab_size=50))


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_shape_tells_the_same_depths(tmp_path, shape):
    backbone = tiny.learner(tmp_path, shape).backbone
    architecture = "causal_lm" if shape in tiny.DECODERS else "masked_lm"
    told = model_shape(read_shape(shape), architecture, tiny.VOCABULARY)
    depths = layer_of(backbone)
    planned = {weight.name: depth_of(weight, told) for weight in told.weights}
    # Of two tied weights transformers names one, here this and there that.
    shared = planned.keys() & depths.keys()
    assert len(planned.keys() ^ depths.keys()) in {0, 2}
    assert {name: planned[name] for name in shared} == {name: depths[name] for name in shared}
    assert sorted(planned.values()) == sorted(depths.values())
