"""Pooling sees the text and nothing of the padding."""

import pytest
import torch

from configs.errors import RecipeError
from downstream.heads import LinearHead
from downstream.heads.classifier import Classifier, pool

HIDDEN = torch.tensor([[[1.0, 4], [3, 2], [9, 9]], [[5, 6], [7, 8], [0, 1]]])
REAL = torch.tensor([[True, True, False], [True, True, True]])
EXPECTED = {
    "first": [[1, 4], [5, 6]],
    "last": [[3, 2], [0, 1]],
    "mean": [[2, 3], [4, 5]],
    "max": [[3, 4], [7, 8]],
}


@pytest.mark.parametrize(("pooling", "expected"), EXPECTED.items())
def test_pooling_by_hand(pooling, expected):
    assert pool(HIDDEN, REAL, pooling).tolist() == expected


@pytest.mark.parametrize("pooling", EXPECTED)
def test_padding_changes_nothing_and_gets_no_gradient(pooling):
    head = Classifier(2, 3, pooling, dropout=0.0)
    hidden = HIDDEN.clone().requires_grad_()
    wild = torch.where(REAL[..., None], hidden, torch.tensor(1e9))
    logits = head(wild, REAL)
    torch.testing.assert_close(logits, head(hidden, REAL))
    logits.sum().backward()
    assert hidden.grad[0, 2].tolist() == [0, 0]


def test_the_weights_are_keyed_by_the_seed():
    class Backbone:
        class config:  # noqa: N801 -- as transformers has it
            hidden_size = 4
            model_type = "bert"

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (LinearHead().build(Backbone, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(one.projection.weight, same.projection.weight)
    assert not torch.equal(one.projection.weight, other.projection.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_decoders_first_token_is_refused():
    class Backbone:
        class config:  # noqa: N801 -- as transformers has it
            hidden_size = 4
            model_type = "gpt2"

    with pytest.raises(RecipeError, match="use 'last' or 'mean'"):
        LinearHead(pooling="first").build(Backbone, 3, 0)
