"""Schedules, parameter groups, and AdamW with pulls on any partition."""

import pytest
import torch
from torch import nn

from configs.errors import RecipeError
from engine.optimization import AdamW
from engine.optimization.adamw import AdamWRule
from engine.optimization.parameter_groups import parameter_groups
from engine.optimization.sharded import ShardedOptimizer
from engine.penalties import StartingPoint


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_vectors_do_not_decay():
    groups = parameter_groups(model(), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [{p.ndim for p in g["params"]} for g in groups] == [{2}, {1}]
    assert sum(len(g["params"]) for g in groups) == 6


def test_rates_scale_by_the_longest_prefix():
    groups = parameter_groups(model(), 0.1, rates={"2": 0.5, "2.bias": 0.25})
    assert sorted((g["weight_decay"], g["lr_scale"], len(g["params"])) for g in groups) == [
        (0.0, 0.25, 1),
        (0.0, 1.0, 3),
        (0.1, 0.5, 1),
        (0.1, 1.0, 1),
    ]
    with pytest.raises(RecipeError, match="elsewhere"):
        parameter_groups(model(), 0.1, rates={"elsewhere": 2.0})
    with pytest.raises(RecipeError, match="nothing to train"):
        parameter_groups(model().requires_grad_(requires_grad=False), 0.1)


def steps_of(parameters: list[nn.Parameter], pull: float, count: int = 5) -> torch.Tensor:
    """The values after steps on the same gradients, however the vector is cut."""
    penalties = [StartingPoint(strength=pull).build()] if pull else []
    groups = [{"params": parameters, "weight_decay": 0.1}]
    rules = {"adamw": AdamWRule(0.9, 0.99, 1e-8)}
    optimizer = ShardedOptimizer(groups, 0.1, rules, penalties)
    for step in range(count):
        gradient = torch.randn(12, generator=torch.Generator().manual_seed(step))
        for piece, part in zip(parameters, gradient.split(len(parameters[0])), strict=True):
            piece.grad = part.clone()
        optimizer.step()
    return torch.cat([p.detach() for p in parameters])


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_any_cut_of_the_vector_takes_the_same_steps(pull):
    start = torch.linspace(-1, 1, 12)
    whole = steps_of([nn.Parameter(start.clone())], pull)
    parts = steps_of([nn.Parameter(part.clone()) for part in start.split(4)], pull)
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-7)


def test_the_pull_is_the_gradient_of_the_squared_distance():
    start = torch.linspace(-1, 1, 12)
    pulled = steps_of([nn.Parameter(start.clone())], 0.5)
    weight = nn.Parameter(start.clone())
    plain = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(5):
        gradient = torch.randn(12, generator=torch.Generator().manual_seed(step))
        plain.zero_grad()
        (0.5 / 2 * (weight - start).square().sum() + (weight * gradient).sum()).backward()
        plain.step()
    torch.testing.assert_close(pulled, weight.detach(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(pulled, steps_of([nn.Parameter(start.clone())], 0.0), atol=1e-3)


def test_penalties_keys_are_part_of_the_state():
    pull = StartingPoint().build()
    optimizer = AdamW(lr=0.1).build(model(), [pull])
    assert optimizer.state_keys == ("exp_avg", "exp_avg_sq", "l2_sp.anchor")
    weight = optimizer.param_groups[0]["params"][0]
    state = optimizer.create_state(weight, "adamw", 4)
    assert float(state["step"]) == 4
    assert all(state[key].shape == weight.shape for key in optimizer.state_keys)
