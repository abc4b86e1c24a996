"""The stage `fisher` as a recipe runs it, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from configs.errors import CheckpointError, RecipeError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from engine.adaptation import Prefix
from engine.additions import save_additions
from engine.checkpoint import open_checkpoint
from engine.earlier import newest_importances
from engine.fisher import FISHER, FisherStage
from tests.engine import tiny

SMALL = {"train_batch_size": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Documents, a model, and one that carries a prefix."""
    folder = tmp_path_factory.mktemp("fisher")
    record = tokenizer_record(tiny.tokenizer_folder(folder / "tokenizer"))
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    with ShardWriter(folder / "shards", record) as writer:
        tokens = np.random.default_rng(0).integers(5, tiny.VOCABULARY, 40 * 15)
        marks = np.full(len(tokens), WORD_START, np.uint8)
        writer.write(tokens, np.full(40, 15, np.int32), marks)
        writer.finish({})
    for name in ("model", "prefixed"):
        backbone = tiny.learner(folder).backbone
        backbone.save_pretrained(folder / name)
        tiny.tokenizer_folder(folder / name)
    save_additions(Prefix(length=2).build(0).apply(backbone), folder / "prefixed")
    return folder


def stage(place, model="model", **changes: Any) -> FisherStage:
    values = {
        "kind": "fisher",
        "model": {"name": "pretrained", "location": str(place / model)},
        "data": {"length": 24, "sources": {"only": {"shards": str(place / "shards")}}},
        "objective": {"name": "mlm"},
        "steps": 2,
        "seed": 1,
        "backend": {"name": "plain", "config": SMALL},
    }
    return FisherStage.model_validate(values | changes)


def context(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("fisher", folder, 1, "key", {})


def run(made: FisherStage, folder):
    made.check(context(folder))
    return made.run(context(folder))


def store(folder):
    return open_checkpoint(newest_importances(folder, "here")).store()


def test_it_saves_means_over_the_targets_and_the_weights_they_are_of(place, tmp_path):
    digest = run(stage(place), tmp_path / "one")
    assert run(stage(place), tmp_path / "again") == digest
    assert run(stage(place, seed=2), tmp_path / "other") != digest
    told = json.loads((tmp_path / "one" / "fisher.json").read_text())
    assert told["rows"] == 8
    assert told["targets"] > 0
    found, model = store(tmp_path / "one"), tiny.learner(place)
    for name, parameter in model.named_parameters():
        assert torch.equal(found.whole(name), parameter)
        assert float(found.whole(name, FISHER).mean()) == told["mean_importance"][name]
    run(
        stage(place, backend={"name": "plain", "config": {"train_batch_size": 8}}, steps=1),
        tmp_path / "whole",
    )
    # Twice the rows in one batch: about the same, as it is no sum.
    means = [
        json.loads((tmp_path / name / "fisher.json").read_text())["mean_importance"]
        for name in ("one", "whole")
    ]
    name = "backbone.cls.predictions.bias"
    assert means[0][name] == pytest.approx(means[1][name], rel=0.5)


def test_a_running_sum_fades_what_was_before(place, tmp_path):
    run(stage(place), tmp_path / "first")
    run(stage(place, seed=2), tmp_path / "alone")
    online = {"previous": str(tmp_path / "first"), "decay": 0.5}
    run(stage(place, seed=2, online=online), tmp_path / "sum")
    first, alone, both = (store(tmp_path / name) for name in ("first", "alone", "sum"))
    for name in both.names:
        expected = alone.whole(name, FISHER) + 0.5 * first.whole(name, FISHER)
        torch.testing.assert_close(both.whole(name, FISHER), expected)


@pytest.mark.parametrize(("before", "after"), [("model", "prefixed"), ("prefixed", "model")])
def test_a_sum_over_other_parameters_is_refused(place, tmp_path, before, after):
    run(stage(place, before, steps=1), tmp_path / "before")
    further = stage(place, after, steps=1, online={"previous": str(tmp_path / "before")})
    with pytest.raises(CheckpointError, match=r"prefix.* is missing in one of the two"):
        run(further, tmp_path / "after")


def test_what_squares_cannot_be_summed_in_is_refused(place, tmp_path):
    states = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    for kind, said in (
        ({"fp16": {"enabled": True}}, "fp16 scales losses"),
        ({"bf16": {"enabled": True, **states}}, "stops growing at 256"),
    ):
        backend = {"name": "deepspeed", "config": SMALL | kind}
        with pytest.raises(RecipeError, match=said):
            stage(place, backend=backend).check(context(tmp_path))


def test_rows_of_pairs_are_refused_as_the_recipe_is_read(place):
    data = {"length": 24, "sources": {"only": {"shards": str(place / "shards")}}}
    with pytest.raises(ValidationError, match="objective that predicts pairs"):
        stage(place, data=data | {"packing": {"name": "sentence_pairs"}})
