"""Experts are to be used alike, whatever the split of the rows into micro-batches."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from configs.errors import RecipeError
from engine.learner import Learner
from engine.objectives import CausalLanguageModelling
from engine.objectives.routing import RouterBalance, imbalance, routed
from engine.protocols import Batch
from tests.engine import tiny

WEIGHT = 0.5
OTHERS = {
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def balanced(folder, shape="mixtral_tiny", **changes):
    plain = tiny.learner(folder, shape, **changes)
    goal = CausalLanguageModelling(balance=RouterBalance(weight=WEIGHT))
    return Learner(plain.backbone, goal.build(tiny.SPECIAL, tiny.VOCABULARY)), plain


def batch(learner, first=0, count=4) -> Batch:
    return learner.objective.collate(tiny.examples(first, count), 5, 2)


def gradients(learner) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    return found


def test_a_row_of_real_tokens_gives_what_transformers_says():
    torch.manual_seed(1)
    layers = [torch.randn(3 * 8, 4) for _ in range(2)]
    real = torch.ones(3, 8, dtype=torch.bool)
    real[2, 5:] = False
    found = imbalance(layers, 2, real)
    for row in range(3):
        here = slice(row * 8, row * 8 + int(real[row].sum()))
        theirs = [load_balancing_loss_func((layer[here],), 4, 2) for layer in layers]
        torch.testing.assert_close(found[row], torch.stack(theirs).mean())


def test_equal_use_is_the_smallest_value():
    logits = 50 * torch.eye(4).repeat(2, 1)
    even = imbalance([logits], 1, torch.ones(1, 8, dtype=torch.bool))
    one = imbalance([logits[:1].repeat(8, 1)], 1, torch.ones(1, 8, dtype=torch.bool))
    torch.testing.assert_close(even, torch.ones(1))
    torch.testing.assert_close(one, 4 * torch.ones(1))


def test_the_loss_does_not_depend_on_the_split(tmp_path):
    learner, _ = balanced(tmp_path)
    whole, by_source, measures = learner(batch(learner).tensors)
    whole.backward()
    expected = gradients(learner)
    parts = [learner(batch(learner, first, 2).tensors) for first in (0, 2)]
    sum(part[0] for part in parts).backward()
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    torch.testing.assert_close(sum(part[1] for part in parts), by_source)
    torch.testing.assert_close(sum(part[2] for part in parts), measures)
    torch.testing.assert_close(by_source.sum(), whole.detach())
    for found, wanted in zip(gradients(learner), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_it_adds_to_training_and_not_to_evaluation(tmp_path):
    learner, plain = balanced(tmp_path)
    rows = batch(learner)
    added = (learner(rows.tensors)[0] - plain(rows.tensors)[0]) / rows.count
    # Two experts a token; they are used nearly alike by random weights.
    assert 2 * WEIGHT < added < 3 * WEIGHT
    told = dict(zip(learner.objective.measures, learner(rows.tensors)[2], strict=True))
    torch.testing.assert_close(told["balance"].sum() / rows.count * WEIGHT, added.detach())
    learner.eval()
    torch.testing.assert_close(learner(rows.tensors)[:2], plain(rows.tensors)[:2])


def test_its_gradient_leads_to_equal_use():
    torch.manual_seed(1)
    logits = torch.randn(64, 4) + torch.tensor([4.0, 0.0, 0.0, 0.0])
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    real = torch.ones(1, 64, dtype=torch.bool)
    before = imbalance([logits], 1, real).item()
    for _ in range(40):
        imbalance([logits], 1, real).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before > 3
    assert imbalance([logits], 1, real).item() < 1.5


@pytest.mark.parametrize("kind", OTHERS)
def test_other_mixtures_are_read_alike(tmp_path, kind):
    shape = {
        "model_type": kind,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        **OTHERS[kind],
    }
    learner, _ = balanced(tmp_path, "mixtral_tiny", **shape)
    rows = batch(learner)
    hidden, layers = routed(
        learner.backbone, {"input_ids": rows.tensors["tokens"], "use_cache": False}
    )
    logits = learner.backbone.get_output_embeddings()(hidden)
    torch.testing.assert_close(
        logits, learner.backbone(input_ids=rows.tensors["tokens"], use_cache=False).logits
    )
    assert [tuple(layer.shape) for layer in layers] == [(4 * tiny.LENGTH, 4)] * 2
    learner(rows.tensors)[0].backward()
    routers = [p for n, p in learner.named_parameters() if "gate.weight" in n]
    assert len(routers) == 2
    assert all(p.grad.abs().sum() > 0 for p in routers)


def test_a_dense_model_has_nothing_to_balance(tmp_path):
    with pytest.raises(RecipeError, match=r"objective.balance: model gpt2.*remove balance"):
        balanced(tmp_path, "gpt2_tiny")
