"""Lion and Muon against direct computations and torch, and rates by layer."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from configs.errors import RecipeError
from engine.backends import Plain
from engine.optimization import AdamW, Lion, Muon
from engine.optimization.muon import MuonRule
from engine.update_sizes import PIECE
from tests.engine import tiny

RATE, DECAY = 0.02, 0.1


def gradients(weight: torch.Tensor, steps: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(weight.shape, generator=rng) for _ in range(steps)]


class Alone(nn.Module):
    """A learner of one matrix."""

    def __init__(self, rows: int = 6, columns: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(rows, columns))


def test_lion_is_the_papers_algorithm():
    learner = Alone()
    optimizer = Lion(lr=RATE, weight_decay=DECAY, beta1=0.9, beta2=0.99).build(learner)
    weight, momentum = learner.weight.detach().clone(), torch.zeros(6, 4)
    for gradient in gradients(weight, 6):
        learner.weight.grad = gradient.clone()
        optimizer.step()
        update = (0.9 * momentum + 0.1 * gradient).sign() + DECAY * weight
        weight = weight - RATE * update
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(learner.weight.detach(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_muon_is_torchs(shape):
    weight = Alone(*shape).weight
    theirs = nn.Parameter(weight.detach().clone())
    reference = torch.optim.Muon(
        [theirs], lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    rule = MuonRule(0.95, 5, "bf16")
    momentum = torch.zeros(shape)
    for gradient in gradients(weight, 5):
        theirs.grad = gradient.clone()
        reference.step()
        direction = rule.turn(rule.accumulate(gradient, {"momentum": momentum}))
        with torch.no_grad():
            weight.mul_(1 - RATE * DECAY).add_(direction, alpha=-RATE)
    # Both iterate in bf16, torch in other orders of the products.
    torch.testing.assert_close(weight, theirs, rtol=0, atol=2e-3)


def test_muon_makes_singular_values_alike_and_experts_one_by_one():
    rule = MuonRule(0.95, 5, "fp32")
    experts = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(2))
    turned = rule.turn(experts)
    values = torch.linalg.svdvals(turned) / (0.2 * 16**0.5)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    for whole, one in zip(turned, experts, strict=True):
        torch.testing.assert_close(whole, rule.turn(one))


def test_muon_is_for_matrices_of_layers_and_adamw_for_the_rest(tmp_path):
    learner = tiny.learner(tmp_path)
    optimizer = Muon(lr=RATE).build(learner)
    names = {p: name for name, p in learner.named_parameters()}
    by_rule = {"muon": set(), "adamw": set()}
    for group in optimizer.param_groups:
        by_rule[group["rule"]] |= {names[p] for p in group["params"]}
    assert all(".layer." in name and name.endswith("weight") for name in by_rule["muon"])
    assert "backbone.bert.embeddings.word_embeddings.weight" in by_rule["adamw"]
    assert "backbone.cls.predictions.transform.dense.weight" in by_rule["adamw"]
    assert len(by_rule["muon"]) + len(by_rule["adamw"]) == len(names)
    assert optimizer.state_keys == ("momentum", "exp_avg", "exp_avg_sq")
    learner.backbone.requires_grad_(requires_grad=False)
    learner.backbone.cls.predictions.bias.requires_grad_()
    with pytest.raises(RecipeError, match="no matrix of the model's layers is trained"):
        Muon(lr=RATE).build(learner)


def test_large_tensors_go_in_pieces_whether_measured_or_not():
    learner = nn.Linear(PIECE // 64 + 100, 130, bias=False)
    copy = nn.Linear(PIECE // 64 + 100, 130, bias=False)
    copy.load_state_dict(learner.state_dict())
    ours, theirs = (AdamW(lr=RATE).build(each) for each in (learner, copy))
    reference = learner.weight.detach().clone().requires_grad_()
    torchs = torch.optim.AdamW([reference], lr=RATE, weight_decay=0.01)
    ours.is_measuring = True
    for gradient in gradients(learner.weight, 3):
        for weight, optimizer in ((learner.weight, ours), (copy.weight, theirs)):
            weight.grad = gradient.clone()
            optimizer.step()
        reference.grad = gradient.clone()
        torchs.step()
    assert torch.equal(learner.weight, copy.weight)
    assert float(ours.state[learner.weight]["step"]) == 3
    torch.testing.assert_close(learner.weight, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_a_rate_that_leads_nowhere_is_refused(factor):
    with pytest.raises(ValidationError, match="rates"):
        AdamW(lr=RATE, rates={"heads.": factor})
    assert AdamW(lr=RATE, rates={"heads.": 0.0}).rates == {"heads.": 0.0}


def test_rates_fall_with_the_depth_below_the_heads(tmp_path):
    learner = tiny.learner(tmp_path)
    backend = Plain(config={"train_batch_size": 8}).build(
        learner, AdamW(lr=RATE, layer_decay=0.5, rates={"backbone.bert.encoder.layer.1.": 3.0}), ()
    )
    count = learner.backbone.config.num_hidden_layers
    expected = {"heads": 1.0, "embeddings": 0.5 ** (count + 1)}
    for layer in range(1, count + 1):
        expected[f"layer {layer}"] = 0.5 ** (count + 1 - layer)
    del expected["layer 2"]
    expected["layer 2 backbone.bert.encoder.layer.1."] = 3.0 * 0.5 ** (count - 1)
    assert backend.rates == expected
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    backend.step(RATE)
    # The first step of AdamW is one rate long, whatever the gradient.
    after = {name: p.detach() for name, p in learner.named_parameters()}
    moved = {name: float((was - after[name]).abs().max()) for name, was in before.items()}
    bias = "backbone.bert.encoder.layer.0.output.dense.bias"
    assert moved[bias] == pytest.approx(RATE * expected["layer 1"], rel=1e-3)
    assert moved["backbone.cls.predictions.transform.dense.bias"] == pytest.approx(RATE, rel=1e-3)
