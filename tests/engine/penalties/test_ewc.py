"""EWC: importances against per-target gradients, the stage at every split, and the pull itself."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import CheckpointError, DataError
from engine.backends import Plain
from engine.earlier import check_earlier, require_importances
from engine.fisher import SquaredGradients
from engine.penalties import ElasticWeights
from engine.penalties.ewc import ElasticPull
from engine.protocols import Piece
from tests.engine import tiny
from tests.engine.backends.zero_cases import save
from tests.engine.techniques import Known
from tests.engine.techniques_worker import look, sampled

OBJECTIVES = ("bert_tiny", "gpt2_tiny")


def summed(folder: Path, shape: str, micro: int = 8) -> Any:
    """A backend that has looked at two batches of 8 rows."""
    config = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": micro}
    plain = Plain(config=config | {"gradient_clipping": 0.0})
    backend = plain.build(sampled(folder, shape), SquaredGradients())
    for step in range(2):
        look(backend, step)
    return backend


@pytest.mark.parametrize("shape", OBJECTIVES)
def test_weights_stay_as_they_are_and_the_split_does_not_matter(tmp_path, shape):
    before = sampled(tmp_path, shape).state_dict()
    whole, parts = summed(tmp_path, shape), save(summed(tmp_path, shape, micro=2))
    after = whole.learner.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for place, value in save(whole).values.items():
        torch.testing.assert_close(parts.values[place], value, rtol=1e-3, atol=1e-4)


@pytest.mark.grid
def test_it_estimates_the_mean_over_labels_of_squared_gradients_target_by_target(tmp_path):
    """The exact diagonal, by every label of every target, against the mean of many draws."""
    learner = sampled(tmp_path, "bert_tiny")
    batch = learner.objective.collate(tiny.examples(0, 1), 5, 2)
    weight = learner.backbone.cls.predictions.transform.dense.bias
    learner.backbone.eval()
    logits = learner.objective._objective.logits(learner.backbone, batch.tensors)
    exact = torch.zeros_like(weight)
    for scores in logits.log_softmax(1):
        for label in range(tiny.VOCABULARY):
            (slope,) = torch.autograd.grad(scores[label], weight, retain_graph=True)
            exact += scores[label].detach().exp() * slope.square()
    rng, draws = np.random.default_rng(0), 400
    total = torch.zeros_like(weight)
    for _ in range(draws):
        tensors = dict(batch.tensors) | {"draws": torch.from_numpy(rng.random(batch.count))}
        (slope,) = torch.autograd.grad(learner(tensors)[0], weight)
        total += slope.square()
    ratio = float((total / draws).sum() / exact.sum())
    assert 0.9 < ratio < 1.1
    assert float(np.corrcoef((total / draws).numpy(), exact.numpy())[0, 1]) > 0.9


@pytest.mark.grid
def test_labels_are_drawn_as_often_as_the_model_thinks(tmp_path):
    learner = sampled(tmp_path, "bert_tiny")
    batch = learner.objective.collate([tiny.example(0)], 5, 2)
    seen = []
    wrapped = learner.objective._objective
    told = wrapped.told

    def watched(logits: Any, labels: Any, tensors: Any) -> Any:
        seen.append((logits.detach(), labels))
        return told(logits, labels, tensors)

    wrapped.told = watched
    rng = np.random.default_rng(1)
    for _ in range(500):
        tensors = dict(batch.tensors) | {"draws": torch.from_numpy(rng.random(batch.count))}
        learner(tensors)
    chances = seen[0][0][0].softmax(0).numpy()
    found = np.bincount([int(labels[0]) for _, labels in seen], minlength=tiny.VOCABULARY) / 500
    # Three standard errors of the most frequent share, at most.
    assert np.abs(found - chances).max() < 3 * np.sqrt(chances.max() / 500)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_rows_draw_the_same_labels_in_any_company(tmp_path):
    goal = sampled(tmp_path, "bert_tiny").objective
    rows = tiny.examples(0, 4)
    together = goal.collate(rows, 5, 2).tensors["draws"]
    apart = [goal.collate([row], 5, 2).tensors["draws"] for row in rows]
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(together, goal.collate(rows, 6, 2).tensors["draws"][: len(together)])


def pulled(stores: list[Any], weight: torch.Tensor, name: str = "backbone.w") -> dict[str, Any]:
    pull = ElasticPull(2.0, stores)
    state = {key: torch.zeros_like(weight) for key in pull.keys}
    # The second half of the parameter, behind one value of padding.
    half = weight.numel() // 2
    piece = Piece(name, (weight.numel(),), half, weight, 1, half)
    pull.start(weight, state, lambda: [piece])
    weight.grad = torch.zeros_like(weight)
    pull.add_gradient(weight, state)
    return state


def test_several_tasks_pull_as_the_sum_of_their_parabolas():
    learner = SimpleNamespace(named_parameters=lambda: [("backbone.w", torch.zeros(8))])
    stores = [Known(learner, number) for number in range(3)]
    weight = torch.randn(8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pulled(stores, weight)
    point = weight.detach()[1:5].clone().requires_grad_()
    energy = 0.0
    for store in stores:
        importance, anchor = (store.read("backbone.w", key, 4, 4) for key in ("fisher", "fp32"))
        energy += (importance * (point - anchor) ** 2).sum()
    (2.0 / 2 * energy).backward()
    torch.testing.assert_close(weight.grad[1:5], point.grad, rtol=1e-5, atol=1e-6)
    assert weight.grad[0] == 0
    assert (weight.grad[5:] == 0).all()


def test_in_bf16_one_task_is_anchored_where_it_ended():
    learner = SimpleNamespace(named_parameters=lambda: [("backbone.w", torch.zeros(400))])
    store = Known(learner, 0)
    weight = torch.zeros(400, dtype=torch.bfloat16)
    state = pulled([store], weight)
    anchors = store.read("backbone.w", "fp32", 200, 200).bfloat16()
    assert torch.equal(state["ewc.anchor"][1:201], anchors)


def test_new_heads_are_free():
    learner = SimpleNamespace(named_parameters=lambda: [("backbone.w", torch.zeros(8))])
    head = torch.ones(8)
    pulled([Known(learner, 0)], head, "heads.pair.weight")
    assert (head.grad == 0).all()


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("backbone.lora_A", 8, r"no importance of 'backbone\.lora_A'"),
        ("backbone.w", 6, r"has shape \(8,\), in this model \(6,\)"),
        ("heads.pair.weight", 3, None),
        ("backbone.w", 8, None),
    ],
)
def test_importances_of_another_model_are_refused_before_the_first_step(name, size, said):
    learner = SimpleNamespace(named_parameters=lambda: [("backbone.w", torch.zeros(8))])
    weight = torch.zeros(size, requires_grad=True)
    new = SimpleNamespace(named_parameters=lambda: [(name, weight)])
    refused = pytest.raises(CheckpointError, match=said) if said else contextlib.nullcontext()
    with refused:
        require_importances(Known(learner, 0), new)


def test_a_folder_without_importances_is_refused(tmp_path):
    config = ElasticWeights(fisher="somewhere")
    with pytest.raises(DataError, match="expected the folder of a finished stage of kind fisher"):
        check_earlier([config], lambda _: True, lambda _: tmp_path, shared_rows=True)
    check_earlier([config], lambda _: False, lambda _: tmp_path, shared_rows=True)
    assert json.loads(config.model_dump_json())["strength"] == 1.0
