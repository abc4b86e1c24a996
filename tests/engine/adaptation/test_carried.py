"""Additions that exports carry: into further stages, under other adaptations, and when damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForMaskedLM

from configs.errors import CheckpointError, RecipeError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from engine.adaptation import (
    Adapter,
    BiasOnly,
    FrozenLayers,
    FullTraining,
    LowRank,
    Prefix,
    Prompt,
)
from engine.additions import CARD, WEIGHTS, carried, restore_additions
from engine.checkpoint import export_problems, read_card
from engine.checkpoint.export import CARD as EXPORT_CARD
from engine.isolation import longest_document, require_positions
from engine.kernels.choice import quicken
from engine.models import PretrainedModel
from engine.pretraining import PretrainStage
from tests.engine import tiny
from tests.engine.adaptation import cases
from tests.engine.adaptation.test_contract import exported

PREFIX = Prefix(length=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer, documents, and exports of models that carry a prefix and a prompt."""
    folder = tmp_path_factory.mktemp("carried")
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    record = tokenizer_record(tokenizer)
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    with ShardWriter(folder / "shards", record) as writer:
        tokens = np.random.default_rng(0).integers(5, tiny.VOCABULARY, 40 * 15)
        marks = np.full(len(tokens), WORD_START, np.uint8)
        writer.write(tokens, np.full(40, 15, np.int32), marks)
        writer.finish({})
    for kind in ("prefix", "prompt"):
        learner = tiny.learner(folder / kind, "bert_tiny", cases.KINDS[kind].build(3))
        cases.train_on(learner, cases.batch(learner, kind), 1)
        exported(folder / kind, "bert_tiny", cases.KINDS[kind], learner)
    return folder


def stage(place, model="prefix/export", **changes):
    values = {
        "kind": "pretrain",
        "model": {"name": "pretrained", "location": str(place / model)},
        "data": {"length": 24, "sources": {"only": {"shards": str(place / "shards")}}},
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": 2,
        "backend": {"name": "plain", "config": {"train_batch_size": 4}},
        "checkpoint": {"every": 1},
    }
    return PretrainStage.model_validate(values | changes)


def context(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("dapt", folder, 1, "key", {})


def state_of(folder):
    built = PretrainedModel(location=str(folder)).build(Path, "masked_lm", 0)
    return built.model.state_dict()


ON_TOP = {
    "full": ({"name": "full"}, True, True),
    # It wraps linear layers, and a prefix is none.
    "lora": ({"name": "lora", "rank": 2}, True, False),
    "itself": (PREFIX.model_dump(), False, True),
    "adapter": ({"name": "adapter", "size": 4}, False, False),
    "bitfit": ({"name": "bitfit"}, True, False),
}


@pytest.mark.parametrize("name", ON_TOP)
def test_a_further_stage_trains_on_with_it(place, tmp_path, name):
    adaptation, is_own_moved, is_prefix_moved = ON_TOP[name]
    made = stage(place, adaptation=adaptation)
    made.check(context(tmp_path))
    made.run(context(tmp_path))
    before, after = state_of(place / "prefix" / "export"), state_of(tmp_path / "export")
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any(".prefix." in key for key in changed) == is_prefix_moved
    assert any(".prefix." not in key for key in changed) == is_own_moved
    names = ["prefix", *(["adapter"] if name == "adapter" else [])]
    assert read_card(tmp_path / "export")["adaptations"] == names
    assert not (tmp_path / "export" / "adapter").exists()
    assert not export_problems(tmp_path / "export")


def test_other_settings_than_the_carried_ones_are_refused(place):
    model = PretrainedModel(location=str(place / "prefix" / "export"))
    backbone = model.build(Path, "encoder", 0).model
    assert [addition.settings for addition in carried(backbone)] == [PREFIX.model_dump()]
    with pytest.raises(RecipeError, match="carries one with other settings"):
        Prefix(length=4).build(0).apply(backbone)


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_damage_is_noticed(place, tmp_path, name):
    folder = shutil.copytree(place / "prefix" / "export", tmp_path / "export")
    content = bytearray((folder / name).read_bytes())
    content[-9] ^= 1
    (folder / name).write_bytes(content)
    assert [problem for problem in export_problems(folder) if name in problem]
    with pytest.raises(CheckpointError, match="damaged"):
        state_of(folder)
    # Even without the export's own card.
    (folder / EXPORT_CARD).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        state_of(folder)


def test_additions_of_another_model_are_refused(place, tmp_path):
    plain = tiny.learner(tmp_path, "bert_tiny", num_attention_heads=4, hidden_size=32).backbone
    with pytest.raises(CheckpointError, match="another model"):
        restore_additions(plain, place / "prefix" / "export")


def test_updates_folder_is_part_of_the_export(tmp_path):
    adaptation = LowRank(rank=2)
    learner = tiny.learner(tmp_path, "bert_tiny", adaptation.build(0))
    folder = exported(tmp_path, "bert_tiny", adaptation, learner).folder
    first = (folder / "adapter" / "adapter_config.json").read_bytes()
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(
        read_card(folder)["files"]
    )
    again = exported(tmp_path, "bert_tiny", adaptation, learner)
    assert (again.folder / "adapter" / "adapter_config.json").read_bytes() == first
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert "adapter/adapter_config.json: damaged" in export_problems(folder)[0]


def test_a_prompt_stands_before_rows_of_one_document(place, tmp_path):
    with pytest.raises(ValidationError, match="several documents into one"):
        stage(place, "tokenizer", adaptation={"name": "prompt"})
    single = {"length": 21, "packing": {"name": "single"}}
    data = {"sources": {"only": {"shards": str(place / "shards")}}}
    for_one = stage(place, "prompt/export", data=data | single)
    for_one.check(context(tmp_path / "one"))
    for_one.run(context(tmp_path / "one"))
    assert read_card(tmp_path / "one" / "export")["adaptations"] == ["prompt"]
    with pytest.raises(RecipeError, match="carries a soft prompt"):
        stage(place, "prompt/export").check(context(tmp_path / "many"))
    with pytest.raises(RecipeError, match="carries a soft prompt"):
        state_of(place / "prompt" / "export")


def test_a_prompt_takes_positions(tmp_path):
    plain = tiny.learner(tmp_path, "roberta_tiny").backbone
    longest = longest_document(plain)
    backbone = tiny.learner(tmp_path, "roberta_tiny", Prompt(length=12).build(0)).backbone
    assert longest_document(backbone) == longest - 12
    with pytest.raises(RecipeError, match=f"positions for {longest - 12} tokens"):
        require_positions(backbone, longest - 11, "data")
    with pytest.raises(ValueError, match="past_key_values"):
        backbone.base_model(input_ids=torch.ones(1, 3).long(), past_key_values=object())


@pytest.mark.parametrize("kind", ["prefix", "prompt", "houlsby"])
def test_kernels_for_documents_are_left_to_those_who_can_use_them(tmp_path, kind):
    quick = tiny.learner(tmp_path, "bert_tiny", cases.KINDS[kind].build(0))
    slow = tiny.learner(tmp_path, "bert_tiny", cases.KINDS[kind].build(0))
    quicken(quick.backbone, torch.device("cpu"), "fp32", tiny.LENGTH)
    used = quick.backbone.config._attn_implementation
    assert used == {"prefix": "prefix", "prompt": "sdpa", "houlsby": "documents"}[kind]
    batch = cases.batch(quick, kind)
    assert cases.train_on(quick, batch, 2) == pytest.approx(
        cases.train_on(slow, batch, 2), rel=1e-5
    )


def odd():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("electra", vocab_size=50, embedding_size=32, **sizes)
    return AutoModelForMaskedLM.from_config(config)


@pytest.mark.parametrize(
    ("shape", "adaptation", "said"),
    [
        (None, Adapter(), "layers of a electra is not known; known are bert, camembert"),
        (None, PREFIX, "layers of a electra is not known"),
        ("llama_tiny", BiasOnly(), "layers of this llama have no biases"),
        ("modernbert_tiny", BiasOnly(), "layers of this modernbert have no biases"),
        ("bert_tiny", BiasOnly(targets=("nowhere",)), r"modules \['nowhere'\] of this bert"),
        ("bert_tiny", FrozenLayers(layers=3), "layers is 3, but the model has 2"),
        ("bert_tiny", LowRank(targets=("nowhere",)), "nowhere"),
    ],
)
def test_what_fits_no_module_is_an_error(tmp_path, shape, adaptation, said):
    backbone = odd() if shape is None else tiny.learner(tmp_path, shape).backbone
    with pytest.raises(RecipeError, match=said):
        adaptation.build(0).apply(backbone)


def test_settings_that_mean_nothing_are_errors():
    with pytest.raises(ValidationError, match="scale belongs to placement parallel"):
        Adapter(placement="houlsby", scale=2)
    with pytest.raises(ValidationError, match="nothing is frozen"):
        FrozenLayers(layers=0, embeddings=False)


def trained(folder, adaptation, shape="bert_tiny"):
    learner = tiny.learner(folder, shape, adaptation.build(0))
    return {name for name, p in learner.backbone.named_parameters() if p.requires_grad}


def test_which_weights_train(tmp_path):
    every = trained(tmp_path, FullTraining())
    biases = trained(tmp_path, BiasOnly())
    assert biases == {name for name in every if name.endswith("bias")}
    some = trained(tmp_path, BiasOnly(targets=("query", "intermediate.dense")))
    assert len(some) == 4
    lower = trained(tmp_path, FrozenLayers(layers=1))
    assert {name for name in every - lower if "encoder" not in name} == {
        name for name in every if ".embeddings." in name
    }
    assert {name for name in every - lower if "encoder" in name} == {
        name for name in every if ".layer.0." in name
    }
    words = trained(tmp_path, FrozenLayers(layers=2, embeddings=False))
    assert all(".layer." not in name for name in words)
    assert any(".word_embeddings." in name for name in words)


def test_the_card_of_additions(place):
    card = json.loads((place / "prefix" / "export" / CARD).read_text())
    assert card["adaptations"][0]["settings"] == {"name": "prefix", "length": 3}
    assert len(card["sha256"]) == 64
