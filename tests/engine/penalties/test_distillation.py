"""Distillation against direct computations, and what it refuses."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.errors import DataError, RecipeError
from data_pipeline.tokenization import tokenizer_sha256
from engine.adaptation import FullTraining
from engine.additions import CARD, FORMAT, WEIGHTS
from engine.earlier import check_earlier, load_teacher
from engine.learner import Learner
from engine.models import read_shape
from engine.objectives import CausalLanguageModelling
from engine.objectives.routing import RouterBalance
from engine.optimization import AdamW
from engine.parameter_shapes import model_shape
from engine.penalties import Distillation
from engine.penalties.distillation import DistilledObjective, divergence
from engine.stage_memory import weights_in, weights_of, whole
from tests.engine import tiny

PLANNED: Any = SimpleNamespace(adaptation=FullTraining(), optimizer=AdamW(lr=1e-3))
SHAPES = ("bert_tiny", "modernbert_tiny", "gpt2_tiny")


def distilled(folder: Path, shape: str, **settings: float) -> Learner:
    own, other = tiny.learner(folder, shape), tiny.learner(folder, shape).backbone
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    config = Distillation(teacher="other", **settings)
    return Learner(own.backbone, DistilledObjective(config, own.objective, lambda: other))


def test_the_divergence_is_kullbacks_and_leiblers():
    rng = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(5, 9, generator=rng), torch.randn(5, 9, generator=rng)
    p, q = (theirs / 2).softmax(1), (ours / 2).softmax(1)
    direct = (p * (p / q).log()).sum(1) * 4
    torch.testing.assert_close(divergence(ours, theirs, 2.0), direct)
    torch.testing.assert_close(divergence(ours, ours, 2.0), torch.zeros(5))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_the_tokens_and_the_weighted_divergence(tmp_path, shape):
    learner = distilled(tmp_path, shape, strength=3.0, temperature=1.5)
    goal = learner.objective
    batch = goal.collate(tiny.examples(0, 4), 5, 2)
    plain = tiny.learner(tmp_path, shape)
    plain.backbone.load_state_dict(learner.backbone.state_dict())
    total, by_source, measures = learner(batch.tensors)
    torch.testing.assert_close(by_source.sum(), total.detach())
    told = dict(zip(goal.measures, measures.sum(1), strict=True))
    tokens = plain(batch.tensors)[0]
    torch.testing.assert_close(told["token_loss"], tokens.detach(), rtol=1e-5, atol=1e-5)
    assert told["divergence"] > 0.01
    torch.testing.assert_close(total, tokens + 3.0 * told["divergence"], rtol=1e-5, atol=1e-4)
    # What an evaluation compares with other runs is the tokens' loss.
    learner.eval()
    torch.testing.assert_close(learner(batch.tensors)[0], tokens, rtol=1e-5, atol=1e-5)


def test_the_teacher_is_frozen_and_never_drops_out(tmp_path):
    learner = distilled(tmp_path, "bert_tiny")
    teacher = learner.heads["teacher"]
    learner.train()
    assert learner.backbone.training
    assert not any(module.training for module in teacher.modules())
    learner(learner.objective.collate(tiny.examples(0, 2), 5, 2).tensors)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_teacher_with_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    own = tiny.learner(tmp_path, "bert_tiny")
    own.backbone.save_pretrained(tmp_path / "teacher")
    tiny.tokenizer_folder(tmp_path / "teacher")
    config = Distillation(teacher=str(tmp_path / "teacher"))

    def made(sha256: str) -> Learner:
        def load(location: str) -> torch.nn.Module:
            return load_teacher(location, "masked_lm", Path, sha256, shared_rows=True)

        return Learner(own.backbone, config.around(own.objective, load))

    assert "teacher" in made(tokenizer_sha256(tmp_path / "teacher")).heads
    with pytest.raises(DataError, match="the shards were made with 0123456789abcdef"):
        made("0123456789abcdef0123")


def test_what_has_no_predictions_to_compare_is_refused(tmp_path):
    config = Distillation(teacher="other")
    balanced = CausalLanguageModelling(balance=RouterBalance()).build(tiny.SPECIAL, tiny.VOCABULARY)
    with pytest.raises(RecipeError, match="mlm without pairs, or clm without balance"):
        config.around(balanced, lambda _: torch.nn.Identity())
    own = tiny.learner(tmp_path, "bert_tiny")
    narrow = tiny.learner(tmp_path / "narrow", "bert_tiny").backbone
    narrow.resize_token_embeddings(32)
    objective = DistilledObjective(config, own.objective, lambda: narrow)
    with pytest.raises(RecipeError, match="a vocabulary of 32, this model of 64"):
        Learner(own.backbone, objective)


def test_a_teacher_with_a_prompt_reads_rows_of_one_document(tmp_path):
    prompt = {"settings": {"name": "prompt"}, "modules": []}
    (tmp_path / WEIGHTS).write_bytes(b"")
    card = {"format": FORMAT, "adaptations": [prompt], "sha256": hashlib.sha256().hexdigest()}
    (tmp_path / CARD).write_text(json.dumps(card))
    asked = [Distillation(teacher=str(tmp_path))]
    check_earlier(asked, lambda _: True, Path, shared_rows=False)
    with pytest.raises(RecipeError, match="carries a soft prompt"):
        check_earlier(asked, lambda _: True, Path, shared_rows=True)


def test_the_planner_finds_the_teacher_in_the_learner(tmp_path):
    learner = distilled(tmp_path, "bert_tiny")
    held = weights_in(learner, AdamW(lr=1e-3))
    sizes = [p.numel() for p in learner.heads["teacher"].parameters()]
    assert list(held.frozen) == sizes
    shape = model_shape(read_shape("bert_tiny"), "masked_lm", tiny.VOCABULARY)
    planned = weights_of(PLANNED, shape, shape)
    assert sorted(planned.frozen) == sorted(sizes)
    assert planned.groups == whole(shape).groups
    found = [n for module in planned.modules if not module.has_backward for n in module.tensors]
    assert set(found) == set(range(len(held.trainable), len(held.tensors)))
