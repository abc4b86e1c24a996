"""What trains under each adaptation, and that merging gives the plain model back."""

import pytest
import torch

from configs.errors import RecipeError
from engine.adaptation import FullTraining, LowRank
from engine.backends import Plain
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.protocols import Run
from tests.engine import tiny


def trained_learner(folder, adaptation, shape="bert_tiny", steps=3):
    learner = tiny.learner(folder, shape, adaptation)
    backend = Plain(config={"train_batch_size": 4}).build(learner, AdamW(lr=1e-2), (), 0)
    batch = learner.objective.collate(tiny.examples(0, 4), 5, 2)
    train(Run(backend, iter([[batch]] * steps), Constant(), 1e-2, steps, 0))
    return learner, batch


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("config", [FullTraining(), LowRank(rank=2)])
def test_merging_gives_the_plain_model_with_the_same_loss(tmp_path, shape, config):
    adaptation = config.build(0)
    learner, batch = trained_learner(tmp_path, adaptation, shape)
    plain = tiny.learner(tmp_path, shape)
    learner.eval()
    before = learner(batch.tensors)[0]
    learner.backbone = adaptation.merge(learner.backbone)
    torch.testing.assert_close(learner(batch.tensors)[0], before, rtol=1e-5, atol=1e-4)
    assert learner.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in learner.parameters())


def test_lora_moves_its_own_weights_alone(tmp_path):
    learner, _ = trained_learner(tmp_path, LowRank(rank=2).build(0))
    fresh = tiny.learner(tmp_path, adaptation=LowRank(rank=2).build(0))
    for (name, now), before in zip(learner.named_parameters(), fresh.parameters(), strict=True):
        assert now.requires_grad == (".lora_" in name)
        assert torch.equal(now, before) == (".lora_" not in name), name


def test_lora_starts_at_the_plain_model_keyed_by_its_seed(tmp_path):
    plain = tiny.learner(tmp_path).eval()
    tensors = plain.objective.collate(tiny.examples(0, 4), 5, 2).tensors
    first, again, other = (
        tiny.learner(tmp_path, adaptation=LowRank().build(seed)).eval() for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first(tensors)[0], plain(tensors)[0])
    name = next(n for n, _ in first.named_parameters() if "lora_A" in n)
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_lora_targets(tmp_path):
    learner = tiny.learner(tmp_path, adaptation=LowRank(targets=("query",)).build(0))
    trained = [n for n, p in learner.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all(".query.lora_" in name for name in trained)
    with pytest.raises(RecipeError, match="nowhere"):
        tiny.learner(tmp_path, adaptation=LowRank(targets=("nowhere",)).build(0))


def test_lora_leaves_experts_alone(tmp_path):
    learner = tiny.learner(tmp_path, "mixtral_tiny", LowRank().build(0))
    names = [n for n, p in learner.named_parameters() if p.requires_grad]
    assert names
    assert all(".self_attn." in name for name in names)
    for targets in (("w1", "w2", "w3"), ("gate",)):
        with pytest.raises(RecipeError, match="no linear layers"):
            tiny.learner(tmp_path, "mixtral_tiny", LowRank(targets=targets).build(0))
