"""A pretraining stage with LoRA: interrupted, resumed, and held to the weights that are frozen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError, DataError, RecipeError, ResourceError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.tokenization import tokenizer_record
from engine import faults
from engine.assemble import assemble, build_learner, make_hooks
from engine.checkpoint import FragmentStore
from engine.exporting import export_step
from engine.frozen import frozen_digest
from engine.oversight import Oversight
from engine.pretraining import PretrainStage
from tests.engine import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, 60 documents in several shards, a masked-language model, and one headless."""
    folder = tmp_path_factory.mktemp("stage")
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 60).astype(np.int32)
    tokens = rng.integers(5, tiny.VOCABULARY, lengths.sum())
    record = tokenizer_record(tokenizer)
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    with ShardWriter(folder / "shards", record, 400) as writer:
        writer.write(tokens, lengths, np.full(len(tokens), WORD_START, np.uint8))
        writer.finish({})
    model = tiny.learner(folder / "tiny", hidden_dropout_prob=0.1).backbone
    model.save_pretrained(folder / "model")
    model.bert.save_pretrained(folder / "headless")
    return folder


def stage(place: Path, model: str | Path = "model", **changes: Any) -> PretrainStage:
    values = {
        "kind": "pretrain",
        "model": {
            "name": "pretrained",
            "location": str(place / model),
            "tokenizer": str(place / "tokenizer"),
        },
        "data": {"length": 24, "sources": {"only": {"shards": str(place / "shards")}}},
        "objective": {"name": "mlm"},
        "adaptation": {"name": "lora", "rank": 2, "dropout": 0.1},
        "penalties": [{"name": "l2_sp", "strength": 0.1}],
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": 4,
        "backend": {"name": "plain", "config": {"train_batch_size": 4}},
        "checkpoint": {"every": 2},
    }
    return PretrainStage.model_validate(values | changes)


def context(folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("dapt", folder, 1, "key", {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": {"name": "infinite", "warmup": 2, "cooldown": 9}}, "cooldown of 9 steps"),
        ({"schedule": {"name": "wsd", "warmup": 2, "decay": 3}}, "decay of 3 steps"),
        ({"schedule": {"name": "constant", "warmup": 9}}, "warmup of 9 steps"),
        ({"averaging": {"name": "swa", "start": 9}}, "start 9 in a run of 4"),
        ({"averaging": {"name": "swa", "start": 999}, "steps": None, "epochs": 1.0}, "start 999"),
    ],
)
def test_phases_longer_than_the_run_are_refused_before_it(place, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        stage(place, **changes).check(context(tmp_path))


def interrupt(folder: Path, target: Path) -> StageContext:
    """What a run that was killed after its third step leaves."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "checkpoints" / "step-4")
    shutil.rmtree(target / "export")
    return context(target)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """An uninterrupted run."""
    stage(place).run(context(place / "runs" / "whole"))
    return place / "runs" / "whole"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "model.safetensors")


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    resumed = interrupt(whole, tmp_path / "run")
    stage(place).run(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed.folder)[name]), name
    lines = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, resumed.folder)
    ]
    assert lines[0] == lines[1]


def test_other_frozen_weights_are_refused(place: Path, whole: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(place / "model", tmp_path / "model")
    values = load_file(changed / "model.safetensors")
    values["bert.embeddings.word_embeddings.weight"][3, 5] += 1e-3
    save_file(values, changed / "model.safetensors", {"format": "pt"})
    other, run = stage(place, changed), interrupt(whole, tmp_path / "run")
    with pytest.raises(CheckpointError, match="step-2: its frozen weights were others"):
        other.run(run)
    with pytest.raises(CheckpointError, match="step-2: its frozen weights were others"):
        export_step(other, run, 2)
    export_step(stage(place), run, 2)


def test_every_frozen_value_and_name_counts() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    assert frozen_digest(model) is None
    model[0].requires_grad_(False)
    before = frozen_digest(model)
    with torch.no_grad():
        model[1].weight.add_(1)
    assert frozen_digest(model) == before
    with torch.no_grad():
        model[0].bias[1] += 1
    assert frozen_digest(model) != before
    assert frozen_digest(torch.nn.Sequential(model[1], model[0])) != frozen_digest(model)


def test_a_fresh_head_trains_beside_the_updates_and_is_exported(
    place: Path, tmp_path: Path
) -> None:
    run = context(tmp_path / "run")
    stage(place, "headless").run(run)
    store = FragmentStore(tmp_path / "run" / "checkpoints" / "step-4")
    assert all(".lora_" in name or ".cls.predictions." in name for name in store.names)
    assert "backbone.cls.predictions.bias" in store.names
    fresh = stage(place, "headless")
    stream = fresh.open_stream(run)
    objective = fresh.objective.build(stream.special, stream.vocabulary_size)
    begun = build_learner(fresh, run, objective)[0].state_dict()
    name = "cls.predictions.transform.LayerNorm.weight"
    assert not torch.equal(weights(run.folder)[name], begun[f"backbone.{name}"])


def test_the_stage_refuses_damaged_shards_and_rows_that_are_too_long(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "shards", tmp_path / "shards")
    last = sorted((tmp_path / "shards").glob("*.ann"))[-1]
    content = bytearray(last.read_bytes())
    content[3] ^= 1
    last.write_bytes(content)
    sources = {"only": {"shards": str(tmp_path / "shards")}}
    with pytest.raises(DataError, match=last.name):
        assemble(stage(place, data={"length": 24, "sources": sources}), context(tmp_path / "run"))
    long = {"length": 2000, "sources": {"only": {"shards": str(place / "shards")}}}
    with pytest.raises(RecipeError, match="data: length is 2000, but the model has positions for"):
        assemble(stage(place, data=long), context(tmp_path / "run"))


def test_masking_by_words_is_refused_on_shards_that_know_no_words(
    place: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(place / "shards", tmp_path / "bare")
    manifest = read_manifest(bare)
    for shard in manifest.shards:
        del shard.files[".ann"]
        (bare / f"{shard.name}.ann").unlink()
    stripped = manifest.model_copy(update={"annotations": {}}).signed()
    (bare / "manifest.json").write_text(stripped.model_dump_json())
    data = {"length": 24, "sources": {"only": {"shards": str(bare)}}}
    by_words = stage(place, data=data, objective={"name": "mlm", "masking": {"name": "whole_word"}})
    for begin in (by_words.check, lambda given: assemble(by_words, given)):
        with pytest.raises(DataError, match="bare: the objective's masking policy needs to know"):
            begin(context(tmp_path / "run"))
    stage(place, data=data).check(context(tmp_path / "run"))
    validated = stage(
        place,
        objective={"name": "mlm", "masking": {"name": "whole_word"}},
        validation={"every": 2, "sets": {"held out": str(bare)}},
    )
    parts = assemble(validated, context(tmp_path / "validated"))
    with pytest.raises(DataError, match="bare: the objective's masking policy needs to know"):
        make_hooks(parts, Oversight.of(parts.context, parts.backend, 900.0))


def test_recomputing_layers_changes_no_bit_and_may_begin_half_way(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    resumed = interrupt(whole, tmp_path / "run")
    recomputing = stage(place, activation_checkpointing={"every": 1})
    assert "activation_checkpointing" in PretrainStage.UNKEYED
    parts = assemble(recomputing, resumed)
    model: Any = parts.backend.learner.backbone
    assert all(layer.gradient_checkpointing for layer in model.bert.encoder.layer)
    recomputing.run(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed.folder)[name]), name


def test_too_little_memory_is_explained(place: Path, tmp_path: Path) -> None:
    faults.load("memory@forward:step=1")
    try:
        with pytest.raises(ResourceError) as caught:
            stage(place).run(context(tmp_path / "run"))
    finally:
        faults.load("")
    told = str(caught.value)
    assert told.startswith("stage dapt: out of memory in 'forward' of step 2, rank 0")
    assert "micro-batches of 4 rows x 24 tokens" in told
    assert "1. DeepSpeed's train_micro_batch_size_per_gpu: 2 (now 4)" in told
    assert "2. activation_checkpointing" in told


def test_what_cannot_be_compiled_is_refused_before_anything_runs(
    place: Path, tmp_path: Path
) -> None:
    settings = {
        "train_batch_size": 4,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    backend = {"name": "deepspeed", "config": settings}
    stage(place, backend=backend).check(context(tmp_path / "run"))
    with pytest.raises(RecipeError, match="compile: ZeRO stage 3"):
        stage(place, backend=backend, compile={}).check(context(tmp_path / "run"))
    assert stage(place, compile={}).keyed_facts() != stage(place).keyed_facts()


def test_a_profile_is_taken_on_the_way_and_changes_nothing(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    assert "profile" in PretrainStage.UNKEYED
    stage(place, profile=True).run(context(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())
    # Four steps are fewer than five; the last three are looked at.
    assert found["steps"] == {"first": 2, "last": 4}
    phases = [each["phase"] for each in found["phases"]]
    assert phases[:5] == ["data", "reduce", "forward", "backward", "optimizer"]
    assert phases[-1] == "checkpointing"
    assert not (whole / "profile").exists()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(tmp_path / "run")[name]), name
