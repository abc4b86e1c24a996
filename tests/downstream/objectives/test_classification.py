"""Rows are scored alike whatever they are batched with, on every architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.example import Example, ExampleKey
from downstream.heads import LinearHead
from downstream.objectives.classification import WIDTH_STEP, Classification
from engine.learner import Learner
from engine.models import PretrainedModel
from tests.downstream import tiny

SHAPES = ("bert_tiny", "roberta_tiny", "modernbert_tiny", "gpt2_tiny", "llama_tiny")


def example(sample: int, length: int, source: int = 0) -> Example:
    tokens = np.random.default_rng(sample).integers(5, 50, length).astype(np.int32)
    zeros = np.zeros(length, np.uint8)
    positions = np.arange(length, dtype=np.int32)
    key = ExampleKey(source, 1, sample, 0)
    segments = np.ones(length, np.int32)
    return Example(tokens, segments, positions, zeros.astype(bool), zeros, key, sample % 3)


EXAMPLES = [example(0, 5), example(1, 21), example(2, 12)]


def objective(**head) -> Classification:
    return Classification(LinearHead(dropout=0.0, **head), classes=3, padding=0, seed=1)


@pytest.fixture(params=SHAPES)
def learner(request, tmp_path) -> Learner:
    folder = tiny.model_folder(tmp_path / "model", shape=request.param)
    backbone = PretrainedModel(location=str(folder)).build(Path, "encoder", 0).model
    return Learner(backbone, objective()).eval()


@torch.no_grad()
def test_a_row_does_not_see_its_batch(learner):
    goal = learner.objective
    with goal.recording() as together:
        total, by_source, _ = learner(goal.collate(EXAMPLES, 0, 1).tensors)
    singles = []
    for index, one in enumerate(EXAMPLES):
        with goal.recording() as logits:
            singles.append(learner(goal.collate([one], 0, 1).tensors)[0])
        torch.testing.assert_close(logits[0][0], together[0][index], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total, torch.stack(singles).sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_source, total.reshape(1))


def test_batches_are_as_wide_as_their_longest_row():
    batch = objective().collate(EXAMPLES, 0, 1)
    assert batch.tensors["tokens"].shape == (3, -(-21 // WIDTH_STEP) * WIDTH_STEP)
    assert batch.tensors["tokens"][0, 5:].tolist() == [0] * (batch.tensors["tokens"].shape[1] - 5)
    assert (batch.count, batch.tokens) == (3, 38)
    assert batch.tensors["labels"].tolist() == [0, 1, 2]


def test_counts_and_losses_are_split_by_source(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    backbone = PretrainedModel(location=str(folder)).build(Path, "encoder", 0).model
    learner = Learner(backbone, objective()).eval()
    rows = [example(0, 5), example(1, 9, source=1), example(2, 7, source=1)]
    batch = learner.objective.collate(rows, 0, 2)
    assert (batch.source_counts, batch.source_tokens) == ((1, 2), (5, 16))
    total, by_source, _ = learner(batch.tensors)
    torch.testing.assert_close(by_source.sum(), total)


def test_nothing_is_kept_outside_of_a_recording(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    backbone = PretrainedModel(location=str(folder)).build(Path, "encoder", 0).model
    learner = Learner(backbone, objective())
    batch = learner.objective.collate(EXAMPLES, 0, 1)
    with learner.objective.recording() as logits:
        learner(batch.tensors)
    learner(batch.tensors)
    assert len(logits) == 1
    assert not logits[0].requires_grad
