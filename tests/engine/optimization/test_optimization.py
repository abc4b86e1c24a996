"""Schedules, parameter groups, and AdamW with pulls on any partition."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn

from configs.errors import RecipeError
from engine.optimization import AdamW, Constant, Cosine, Linear, ScheduleConfig
from engine.optimization.adamw import AdamWRule
from engine.optimization.parameter_groups import parameter_groups
from engine.optimization.sharded import ShardedOptimizer
from engine.penalties import StartingPoint


@given(
    kind=st.sampled_from([Linear, Cosine, Constant]),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
)
def test_a_schedule_rises_once_and_falls_once(kind, steps, warmup):
    schedule = kind(warmup=warmup)
    rates = [schedule.factor(step, steps) for step in range(steps)]
    rising = schedule.warmup_steps(steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert rising == 0 or rates[rising - 1] == 1


def test_schedules_at_known_points():
    linear = Linear(warmup=2, end=0.2)
    assert [linear.factor(s, 6) for s in range(6)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4])
    assert Cosine().factor(5, 10) == pytest.approx(0.5)
    assert Constant(warmup=0.5).factor(0, 4) == 0.5


def test_warmup_is_a_share_or_a_number_of_steps():
    read = TypeAdapter(ScheduleConfig).validate_python
    assert read({"name": "linear", "warmup": 0.1}).warmup_steps(50) == 5
    assert read({"name": "linear", "warmup": 7}).warmup_steps(50) == 7
    with pytest.raises(ValidationError, match="neither a share below 1"):
        read({"name": "linear", "warmup": 1.5})
    with pytest.raises(RecipeError, match="warmup of 7 steps in a run of 5"):
        Linear(warmup=7).factor(0, 5)


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
    penalties = [StartingPoint(strength=pull).build(Path)] if pull else []
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
    pull = StartingPoint().build(Path)
    optimizer = AdamW(lr=0.1).build(model(), [pull])
    assert optimizer.state_keys == ("exp_avg", "exp_avg_sq", "l2_sp.anchor")
    weight = optimizer.param_groups[0]["params"][0]
    state = optimizer.create_state(weight, "adamw", 4)
    assert float(state["step"]) == 4
    assert all(state[key].shape == weight.shape for key in optimizer.state_keys)
