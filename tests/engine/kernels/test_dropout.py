"""Quick dropout: its share, its mean, its gradient, and that a seed makes it."""

import pytest
import torch
from torch import nn

from engine.kernels import dropout


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_share_mean_and_gradient(kind, rate):
    layer = nn.Dropout(rate)
    dropout.quicken(layer)
    torch.manual_seed(3)
    values = torch.ones(501, 403, dtype=kind, requires_grad=True)
    dropped = layer(values)
    gone = dropped == 0
    assert gone.float().mean().item() == pytest.approx(rate, abs=0.005)
    kept = dropped[~gone].unique()
    assert len(kept) == 1
    assert kept.item() == pytest.approx(1 / (1 - rate), rel=5e-3)
    # Along both sides of the matrix alike: no pattern from words of four values.
    for side in (0, 1):
        spread = gone.float().mean(side).std().item()
        assert spread < 1.5 * (rate * (1 - rate) / values.shape[side]) ** 0.5
    dropped.backward(torch.ones_like(dropped).t().contiguous().t())
    torch.testing.assert_close(values.grad, dropped.detach())


def test_a_seed_makes_it_and_evaluation_has_none():
    layer = nn.Sequential(nn.Dropout(0.4))
    dropout.quicken(layer)
    values = torch.randn(7, 9)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return layer(values)

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))
    torch.manual_seed(1)
    assert not layer(values).equal(layer(values))
    assert layer.eval()(values) is values


def test_other_kinds_and_edges_go_by_torch():
    layer = nn.Dropout(0.5)
    dropout.quicken(layer)
    values = torch.ones(64, dtype=torch.float64)
    torch.manual_seed(0)
    found = layer(values)
    torch.manual_seed(0)
    assert found.equal(nn.functional.dropout(values, 0.5))
    for rate, left in ((0.0, 64), (1.0, 0), (0.999999, 0)):
        layer.p = rate
        assert int((layer(torch.ones(64)) != 0).sum()) == left


def test_recomputing_draws_the_same():
    from torch.utils.checkpoint import checkpoint

    layer = nn.Dropout(0.5)
    dropout.quicken(layer)
    values = torch.randn(50, requires_grad=True)
    torch.manual_seed(4)
    plain = layer(values) * values
    plain.sum().backward()
    wanted = values.grad.clone()
    values.grad = None
    torch.manual_seed(4)
    checkpoint(lambda x: layer(x) * x, values, use_reentrant=False).sum().backward()
    assert values.grad.equal(wanted)
