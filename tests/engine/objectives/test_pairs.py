"""Pairs: a classifier beside the masked tokens, its loss exact for every split of a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from configs.stage import StageContext
from data_pipeline.example import SENTENCE_START, WORD_START, Example
from data_pipeline.packing import BestFitPacking, SentencePairsPacking
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from downstream.evaluation.language_model import LanguageModelEvaluation
from engine.adaptation import FullTraining
from engine.checkpoint import FragmentStore
from engine.learner import Learner
from engine.models import RandomModel, read_shape
from engine.objectives import CausalLanguageModelling, MaskedLanguageModelling, mlm, require_fitting
from engine.pretraining import PretrainStage
from engine.protocols import Objective
from tests.engine import tiny

LABELS = (1, 0, -1, 0)


def objective(weight: float = 0.5) -> Objective:
    config = MaskedLanguageModelling.model_validate({"pairs": {"weight": weight}})
    return config.build(tiny.SPECIAL, tiny.VOCABULARY)


def rows() -> list[Example]:
    """Two parts a row, but for the third row."""
    made = []
    for number, (label, length) in enumerate(zip(LABELS, (24, 18, 9, 21), strict=True)):
        parts = np.zeros(tiny.LENGTH, np.uint8)
        if label >= 0:
            parts[length // 2 : length] = 1
        row = tiny.example(number, number % 2, (length,))
        made.append(replace(row, label=label, parts=parts))
    return made


def learner(folder: Path, shape: str, goal: Objective) -> Learner:
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    values = read_shape(shape) | dict.fromkeys(tiny.dropouts(shape), 0.0)
    config = RandomModel(shape=values, tokenizer=str(tokenizer))
    model = config.build(Path, "masked_lm", seed=3).model
    return Learner(FullTraining().apply(model), goal).eval()


@pytest.mark.parametrize("shape", tiny.ENCODERS)
def test_losses_add_up_however_the_batch_is_split(tmp_path: Path, shape: str) -> None:
    goal = objective()
    model = learner(tmp_path, shape, goal)
    batch = goal.collate(rows(), 5, 2)
    total, by_source, _ = model(batch.tensors)
    torch.testing.assert_close(by_source.sum(), total.detach())
    apart = [goal.collate([row], 5, 2) for row in rows()]
    assert sum(each.count for each in apart) == batch.count
    singles = [model(each.tensors) for each in apart]
    torch.testing.assert_close(sum(s[0] for s in singles), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(s[1] for s in singles), by_source, rtol=1e-5, atol=1e-5)


def test_the_pair_loss_counts_by_the_targets_of_its_row(tmp_path: Path) -> None:
    goal, plain = objective(), MaskedLanguageModelling().build(tiny.SPECIAL, tiny.VOCABULARY)
    model = learner(tmp_path, "bert_tiny", goal)
    tensors = goal.collate(rows(), 5, 2).tensors
    alone = plain.loss(model, tensors).total
    hidden = mlm.score(model.backbone, tensors).first
    told = cross_entropy(
        model.heads["pair"](hidden), tensors["pairs"].clamp(min=0), reduction="none"
    )
    targets = torch.bincount(tensors["at"] // tiny.LENGTH, minlength=4)
    expected = sum(0.5 * targets[at] * told[at] for at, label in enumerate(LABELS) if label >= 0)
    torch.testing.assert_close(model(tensors)[0] - alone, expected, rtol=1e-4, atol=1e-4)
    assert tensors["pairs"].tolist() == list(LABELS)
    model(tensors)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.heads.parameters())


def test_an_architecture_without_a_known_head_gives_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = objective()
    model = learner(tmp_path, "bert_tiny", goal)
    tensors = goal.collate(rows(), 5, 2).tensors
    known = model(tensors)[0]
    monkeypatch.delitem(mlm._HEADS, "bert")
    torch.testing.assert_close(known, model(tensors)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "told"), [("bert_tiny", True), ("modernbert_tiny", False)])
def test_parts_are_token_types_where_the_model_has_them(
    tmp_path: Path, shape: str, told: bool
) -> None:
    goal = objective()
    model = learner(tmp_path, shape, goal)
    tensors = dict(goal.collate(rows(), 5, 2).tensors)
    before = model(tensors)[0]
    tensors["parts"] = 1 - tensors["parts"]
    assert bool(torch.equal(before, model(tensors)[0])) is not told


def test_the_head_is_the_same_at_every_start(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = learner(tmp_path / "a", "bert_tiny", objective())
    torch.manual_seed(2)
    second = learner(tmp_path / "b", "bert_tiny", objective())
    for one, two in zip(first.heads.parameters(), second.heads.parameters(), strict=True):
        assert torch.equal(one, two)


def test_pairs_and_their_packing_go_together() -> None:
    paired = MaskedLanguageModelling.model_validate({"pairs": {}})
    require_fitting(paired, SentencePairsPacking())
    require_fitting(MaskedLanguageModelling(), BestFitPacking())
    with pytest.raises(ValueError, match=r"objective\.pairs needs rows of sentence pairs"):
        require_fitting(paired, BestFitPacking())
    for other in (MaskedLanguageModelling(), CausalLanguageModelling()):
        with pytest.raises(ValueError, match="is for an objective that predicts pairs"):
            require_fitting(other, SentencePairsPacking())
    values = {"arms": {"a": "m"}, "sets": {"domain": "x", "general": "y"}}
    with pytest.raises(ValidationError, match="the pair head is no part of an exported model"):
        LanguageModelEvaluation.model_validate(values | {"objective": paired})


def stage(folder: Path, **changes: Any) -> PretrainStage:
    packing = {"name": "sentence_pairs", "negatives": "random_document"}
    values = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": "bert_tiny", "tokenizer": str(folder / "tokenizer")},
        "data": {
            "length": 24,
            "packing": packing,
            "sources": {"only": {"shards": str(folder / "shards")}},
        },
        "objective": {"name": "mlm", "pairs": {"weight": 1.0}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": 3,
        "backend": {"name": "plain", "config": {"train_batch_size": 8}},
        "checkpoint": {"every": 3},
        "validation": {"every": 3, "rows": 8, "sets": {"held_out": str(folder / "shards")}},
    }
    return PretrainStage.model_validate(values | changes)


def test_a_stage_trains_on_pairs_and_exports_the_model_alone(tmp_path: Path) -> None:
    record = tokenizer_record(tiny.tokenizer_folder(tmp_path / "tokenizer"))
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 60).astype(np.int32)
    tokens = rng.integers(5, tiny.VOCABULARY, lengths.sum())
    marks = np.full(len(tokens), WORD_START, np.uint8)
    marks[rng.random(len(marks)) < 0.2] |= SENTENCE_START
    with ShardWriter(tmp_path / "shards", record, 10_000) as writer:
        writer.write(tokens, lengths, marks)
        writer.finish({})
    (tmp_path / "run").mkdir()
    stage(tmp_path).run(StageContext("dapt", tmp_path / "run", 1, "key", {}))
    names = FragmentStore(tmp_path / "run" / "checkpoints" / "step-3").names
    assert {name for name in names if name.startswith("heads.")} == {
        f"heads.pair.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert not any("pair" in name for name in exported)
    with pytest.raises(ValidationError, match=r"packing sentence_pairs is for an objective"):
        stage(tmp_path, objective={"name": "mlm"})
