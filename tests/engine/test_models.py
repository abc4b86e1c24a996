"""Backbones: sized to the tokenizer, the same for a seed, refused where they do not fit."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from configs.errors import CheckpointError, DataError, RecipeError
from configs.stage import StageContext
from data_pipeline.tokenization import tokenizer_sha256
from engine.checkpoint.export import CARD, FORMAT, _fingerprint, _sha256
from engine.models import SHAPES, PretrainedModel, RandomModel, read_shape
from tests.engine import tiny

PRESETS = sorted(p.stem for p in SHAPES.glob("*.json"))


@pytest.fixture
def tokenizer(tmp_path):
    return str(tiny.tokenizer_folder(tmp_path / "tokenizer"))


def build(config, architecture="masked_lm", seed=0):
    return config.build(Path, architecture, seed)


@pytest.mark.parametrize("shape", PRESETS)
def test_every_preset_builds_to_the_tokenizers_size(tokenizer, shape):
    causal = shape.startswith(("gpt2", "llama", "mixtral"))
    model, loaded, _ = build(
        RandomModel(shape=shape, tokenizer=tokenizer), "causal_lm" if causal else "masked_lm"
    )
    assert model.get_input_embeddings().weight.shape[0] == len(loaded) == tiny.VOCABULARY
    assert model.config._attn_implementation == "sdpa"
    assert next(model.parameters()).dtype is torch.float32
    assert model.config.pad_token_id == 0


def test_weights_are_keyed_by_the_seed_and_leave_the_generator_alone(tokenizer):
    config = RandomModel(shape="bert_tiny", tokenizer=tokenizer)
    before = torch.get_rng_state()
    first, again, other = (build(config, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_pretrained_is_what_was_saved(tokenizer, tmp_path):
    made = build(RandomModel(shape="bert_tiny", tokenizer=tokenizer))
    made.model.save_pretrained(tmp_path / "saved")
    config = PretrainedModel(location=str(tmp_path / "saved"), tokenizer=tokenizer)
    loaded = build(config).model
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert loaded.training
    encoder = build(config, "encoder").model
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_a_missing_head_is_made_afresh_but_a_missing_layer_is_refused(tokenizer, tmp_path):
    made = build(RandomModel(shape="bert_tiny", tokenizer=tokenizer)).model
    made.bert.save_pretrained(tmp_path / "bare")
    config = PretrainedModel(location=str(tmp_path / "bare"), tokenizer=tokenizer)
    first, again = build(config, seed=4).model, build(config, seed=4).model
    head = "cls.predictions.transform.dense.weight"
    assert torch.equal(first.state_dict()[head], again.state_dict()[head])
    short = {k: v for k, v in made.state_dict().items() if "layer.1.output" not in k}
    made.save_pretrained(tmp_path / "cut", state_dict=short)
    with pytest.raises(DataError, match=r"weights are missing, among them bert\.encoder\.layer\.1"):
        build(PretrainedModel(location=str(tmp_path / "cut"), tokenizer=tokenizer))


def test_a_tokenizer_that_is_too_large_is_refused(tokenizer, tmp_path):
    made = build(RandomModel(shape="bert_tiny", tokenizer=tokenizer)).model
    made.save_pretrained(tmp_path / "saved")
    large = str(tiny.tokenizer_folder(tmp_path / "large", 80))
    with pytest.raises(DataError, match="has 80 ids, the model 64 embeddings"):
        build(PretrainedModel(location=str(tmp_path / "saved"), tokenizer=large))


def test_the_shards_tokenizer_is_checked(tokenizer, tmp_path):
    config = RandomModel(shape="bert_tiny", tokenizer=tokenizer)
    config.check_tokenizer(lambda _: True, Path, tokenizer_sha256(Path(tokenizer)))
    other = tokenizer_sha256(tiny.tokenizer_folder(tmp_path / "other", 70))
    with pytest.raises(DataError, match="but the shards were made with"):
        config.check_tokenizer(lambda _: True, Path, other)
    config.check_tokenizer(lambda _: False, Path, other)


@pytest.mark.parametrize(
    ("shape", "architecture", "error", "message"),
    [
        ("bert_huge", "masked_lm", RecipeError, "presets are: bert_mini, "),
        ("gpt2_tiny", "masked_lm", RecipeError, "does not work as AutoModelForMaskedLM"),
        ({"hidden_size": 8}, "masked_lm", RecipeError, "expected a JSON object with 'model_type'"),
        ({"model_type": "bert", "vocab_size": 5}, "masked_lm", RecipeError, "remove it"),
        ({"model_type": "birt"}, "masked_lm", RecipeError, "birt"),
    ],
)
def test_unfit_shapes_are_refused(tokenizer, shape, architecture, error, message):
    with pytest.raises(error, match=message):
        build(RandomModel(shape=shape, tokenizer=tokenizer), architecture)


def test_folders_without_a_model_or_tokenizer_are_refused(tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    with pytest.raises(DataError, match=r"tokenizer .*empty: transformers cannot load it"):
        build(RandomModel(shape="bert_tiny", tokenizer=empty))
    with pytest.raises(DataError, match=r"model .*empty: transformers cannot load it"):
        build(PretrainedModel(location=empty, tokenizer=tokenizer))


def test_shapes_are_read_from_files_and_mappings(tmp_path):
    values = read_shape("bert_tiny")
    (tmp_path / "mine.json").write_text('{"model_type": "bert"}')
    assert read_shape(values) == values
    assert read_shape(str(tmp_path / "mine.json")) == {"model_type": "bert"}
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(RecipeError, match=r"mine\.json:1: not JSON"):
        read_shape(str(tmp_path / "mine.json"))


def test_transformers_alone_loads_what_a_preset_saves(tokenizer, tmp_path):
    made = build(RandomModel(shape="roberta_tiny", tokenizer=tokenizer)).model
    made.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.vocab_size == tiny.VOCABULARY


@pytest.mark.parametrize("location", ["./missing", "/missing", "~missing", "models/brt", "a/b/c"])
def test_a_path_that_is_missing_is_no_hub_name(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    context = StageContext("base", tmp_path, 0, "", {})
    with pytest.raises(DataError, match="nothing at"):
        PretrainedModel(location=location).check(context.is_made, context.locate)
    # A cluster may download these.
    for name in ("brt", "google/brt"):
        PretrainedModel(location=name).check(context.is_made, context.locate)


def test_a_damaged_export_is_refused(tokenizer, tmp_path):
    made = build(RandomModel(shape="bert_tiny", tokenizer=tokenizer))
    folder = tmp_path / "export"
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    files = {"model.safetensors": {"bytes": 0, "sha256": _sha256(weights)}}
    card = {"format": FORMAT, "fingerprint": _fingerprint(files), "files": files}
    (folder / CARD).write_text(json.dumps(card))
    config = PretrainedModel(location=str(folder))
    build(config)
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    for architecture in ("masked_lm", "encoder"):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
            build(config, architecture)


def test_loading_says_what_is_fresh_in_one_line_and_nothing_else(
    tokenizer, tmp_path, caplog, capfd
):
    made = build(RandomModel(shape="bert_tiny", tokenizer=tokenizer)).model
    made.bert.save_pretrained(tmp_path / "bare")
    caplog.set_level(logging.INFO, "engine")
    capfd.readouterr()
    loaded = build(PretrainedModel(location=str(tmp_path / "bare"), tokenizer=tokenizer))
    (line,) = [record.message for record in caplog.records if record.name == "engine.models"]
    assert "no weights for its head, made afresh: cls.predictions" in line
    assert loaded.fresh
    assert all(name.startswith("cls.") for name in loaded.fresh)
    assert capfd.readouterr().err == ""
