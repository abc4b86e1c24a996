"""Losses in pieces against the whole, and against double precision."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from engine.activations import targets_at_once
from engine.objectives import vocabulary
from tests.engine import tiny


def layer(bias: bool, kind: torch.dtype, classes: int = 700) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(16, classes, bias=bias).to(kind)
    made.__class__ = vocabulary.VocabularyLayer
    return made


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(vocabulary, "targets_at_once", lambda _: 32)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [33, 64, 200])
@pytest.mark.usefixtures("small_pieces")
def test_losses_and_gradients_are_those_of_the_whole(kind, bias, count):
    output = layer(bias, kind)
    hidden = torch.randn(count, 16).to(kind).requires_grad_()
    labels = torch.randint(0, 700, (count,))
    # Some are hit, which would hardly happen by chance.
    labels[::3] = output(hidden).argmax(1)[::3]
    assert output.takes_pieces(hidden)
    found = vocabulary.target_losses(output, hidden, labels)
    (found.total / 7).backward()
    exact = [part.detach().double().requires_grad_() for part in (hidden, *output.parameters())]
    losses = cross_entropy(linear(*exact), labels, reduction="none")
    (losses.sum() / 7).backward()
    within = {"atol": 1e-5, "rtol": 1e-5} if kind is torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(found.each.double(), losses.detach(), **within)
    assert found.total.dtype is found.each.dtype is found.hits.dtype is torch.float32
    assert not found.each.requires_grad
    assert not found.hits.requires_grad
    scores = output(hidden).float()
    assert torch.equal(found.hits.bool(), scores.argmax(1) == labels)
    for part, wanted in zip((hidden, *output.parameters()), exact, strict=True):
        assert part.grad.dtype is kind
        torch.testing.assert_close(part.grad.double(), wanted.grad, **within)


@pytest.mark.usefixtures("small_pieces")
def test_what_is_frozen_gets_no_gradient():
    output = layer(bias=True, kind=torch.float32).requires_grad_(requires_grad=False)
    hidden = torch.randn(40, 16, requires_grad=True)
    vocabulary.target_losses(output, hidden, torch.zeros(40, dtype=torch.long)).total.backward()
    assert output.weight.grad is None
    assert hidden.grad is not None


@pytest.mark.usefixtures("small_pieces")
def test_an_evaluation_makes_no_gradients(monkeypatch):
    output = layer(bias=True, kind=torch.float32)
    made = []
    monkeypatch.setattr(vocabulary._Gradients, "add", lambda *_: made.append(1))
    with torch.no_grad():
        found = vocabulary.target_losses(output, torch.randn(40, 16), torch.zeros(40).long())
    assert found.total > 0
    assert not made


def test_few_targets_and_fp16_are_scored_at_once():
    output = layer(bias=True, kind=torch.float32)
    assert not output.takes_pieces(torch.zeros(256, 16))
    many = torch.zeros(targets_at_once(700) + 1, 16)
    assert output.takes_pieces(many)
    assert not output.takes_pieces(many.half())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_every_architecture_learns_the_same_in_pieces(tmp_path, monkeypatch, shape):
    learner = tiny.learner(tmp_path, shape)
    batch = learner.objective.collate(tiny.examples(0, 4), 0, 2)

    def outcome() -> tuple[torch.Tensor, list[torch.Tensor]]:
        learner.zero_grad()
        total, by_source, _ = learner(batch.tensors)
        total.backward()
        gradients = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
        return torch.cat([total.detach().reshape(1), by_source]), gradients

    whole = outcome()
    called = []
    apply = vocabulary._InPieces.apply
    monkeypatch.setattr(vocabulary, "targets_at_once", lambda _: 2)
    monkeypatch.setattr(
        vocabulary._InPieces, "apply", lambda *given: called.append(1) or apply(*given)
    )
    pieces = outcome()
    assert called
    torch.testing.assert_close(pieces[0], whole[0])
    assert len(pieces[1]) == len(whole[1])
    for ours, theirs in zip(pieces[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
