"""Probes: what they score, that training does not notice them, and the choice by them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from configs.errors import DataError
from downstream.evaluation.metrics import scores
from downstream.pretraining import ProbeConfig, ProbedPretraining
from downstream.probing import Probe, pooled
from downstream.tasks.rows import TaskData
from engine.assemble import assemble
from engine.checkpoint import open_checkpoint
from engine.pretraining import PretrainStage
from engine.training import train_from_newest
from launcher.links import inputs_of
from launcher.recipe import Recipe
from tests.downstream.probing_cases import PROBE, STEPS, context, prepare, stage


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("probing"))


@pytest.fixture(scope="module")
def watched(place: Path) -> Path:
    """A run with a probe."""
    folder = place / "runs" / "watched"
    train_from_newest(assemble(stage(place), context(place, folder)))
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    store = open_checkpoint(folder / "checkpoints" / f"step-{step}").store()
    keys = ("fp32", *store.state_keys)
    return {f"{name}|{key}": store.whole(name, key) for name in store.names for key in keys}


def test_training_does_not_notice_a_probe(place: Path, watched: Path, tmp_path: Path) -> None:
    without = stage(place, probes={})
    train_from_newest(assemble(without, context(place, tmp_path)))
    mine, theirs = weights(watched), weights(tmp_path)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    losses = [[line["loss"] for line in lines(each, "metrics")] for each in (watched, tmp_path)]
    assert losses[0] == losses[1]
    assert not (tmp_path / "probes.jsonl").exists()


def test_its_scores_are_those_of_a_classifier_on_mean_hidden_states(
    place: Path, watched: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(place / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    config = ProbeConfig.model_validate(PROBE)
    data = config.load(context(place, tmp_path).locate)
    assert {side: len(rows) for side, rows in data.sides.items()} == {"train": 60, "dev": 30}

    def features(side: Any) -> np.ndarray:
        found = []
        for row in data.sides[side]:
            inputs = tokenizer(row.text, truncation=True, max_length=24, return_tensors="pt")
            with torch.no_grad():
                found.append(model(**inputs).last_hidden_state[0].mean(0).numpy())
        return np.stack(found).astype(np.float64)

    parts = assemble(stage(place), context(place, tmp_path))
    probe = Probe.build(config, parts)
    for side in ("train", "dev"):
        mine = pooled(parts.backend, probe.examples[side], probe.padding, lambda: True)
        np.testing.assert_allclose(mine, features(side), atol=1e-5)
    scaler = StandardScaler().fit(features("train"))
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(scaler.transform(features("train")), data.label_ids("train"))
    predicted = classifier.predict(scaler.transform(features("dev"))).tolist()
    first, *others = lines(watched, "probes")
    assert first["probes"]["parts"] == pytest.approx(scores(data.label_ids("dev"), predicted))
    assert [line["step"] for line in others] == [2, 4, 6]


def test_the_test_side_is_not_looked_at(place: Path, tmp_path: Path) -> None:
    loaded = ProbeConfig.model_validate(PROBE).load(context(place, tmp_path).locate)
    assert set(loaded.sides) == {"train", "dev"}


def test_a_step_is_chosen_and_exported_by_a_probe(place: Path, tmp_path: Path) -> None:
    asked = stage(place, choose={"by": "probe/parts/accuracy"})
    asked.run(context(place, tmp_path))
    measured = {line["step"]: line["probes"]["parts"] for line in lines(tmp_path, "probes")}
    best = max(list(measured)[1:], key=lambda step: measured[step]["accuracy"])
    told = json.loads((tmp_path / "choice.json").read_text())
    assert (told["step"], told["value"]) == (best, measured[best]["accuracy"])
    exported = load_file(tmp_path / "export" / "model.safetensors")
    kept = weights(tmp_path, best)
    assert all(torch.equal(v, kept[f"backbone.{n}|fp32"]) for n, v in exported.items())


def test_a_decoder_with_lora_is_probed(place: Path, tmp_path: Path) -> None:
    from tests.downstream import tiny

    tiny.model_folder(tmp_path / "gpt", shape="gpt2_tiny")
    asked = stage(
        place,
        model={"name": "pretrained", "location": str(tmp_path / "gpt")},
        objective={"name": "clm"},
        adaptation={"name": "lora", "rank": 2},
        steps=2,
    )
    train_from_newest(assemble(asked, context(place, tmp_path / "run")))
    assert [line["step"] for line in lines(tmp_path / "run", "probes")] == [0, 2]


def test_a_recipe_has_probes_and_reads_from_their_task(place: Path) -> None:
    values = stage(place).model_dump(mode="json", exclude_unset=True)
    recipe = Recipe.model_validate(
        {"name": "r", "output": "runs/r", "stages": {"dapt": values | {"kind": "pretrain"}}}
    )
    made = recipe.stages["dapt"]
    assert isinstance(made, ProbedPretraining)
    assert isinstance(made, PretrainStage)
    assert inputs_of(made) == ("rows",)
    with pytest.raises(ValidationError, match="'probe/other/accuracy' is not measured"):
        stage(place, choose={"by": "probe/other/accuracy"})


def test_a_task_that_shows_one_class_is_refused_before_training(
    place: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(place / "rows", tmp_path / "rows")
    data = TaskData.open(copy)
    label = data.sides["train"][0].label
    rows = (copy / "train.jsonl").read_text().splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join(r for r in rows if f'"{label}"' in r))
    probes = {"parts": PROBE | {"task": str(copy)}}
    with pytest.raises(DataError, match="its train rows are of one class"):
        stage(place, probes=probes).check(context(place, tmp_path / "run"))
