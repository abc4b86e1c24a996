"""The contract every objective keeps, then what each one promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from configs.errors import DataError
from data_pipeline.masking import DynamicMasking
from engine.isolation import isolated_inputs
from engine.objectives import CausalLanguageModelling, MaskedLanguageModelling, mlm
from tests.engine import tiny

MASK = tiny.SPECIAL["mask"]


def masked(**settings_of: object):
    return MaskedLanguageModelling(**settings_of).build(tiny.SPECIAL, tiny.VOCABULARY)


@pytest.mark.parametrize("shape", ["bert_tiny", "gpt2_tiny"])
def test_a_batch_is_a_function_of_examples_and_seed(shape):
    goal = tiny.objective(shape)
    rows = tiny.examples(0, 4)
    first, again = (goal.collate(rows, 5, 2) for _ in range(2))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
    # Whatever batch a row stands in, it looks the same.
    apart = [goal.collate([row], 5, 2) for row in rows]
    assert torch.equal(torch.cat([b.tensors["tokens"] for b in apart]), first.tensors["tokens"])
    assert sum(b.count for b in apart) == first.count == len(first.tensors["at"])


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_counts_and_losses_add_up(tmp_path, shape):
    learner = tiny.learner(tmp_path, shape).eval()
    goal = learner.objective
    batch = goal.collate(tiny.examples(0, 4), 5, 3)
    assert sum(batch.source_counts) == batch.count
    assert sum(batch.source_tokens) == batch.tokens == 16 + 24 + 5 + 24
    assert batch.source_counts[2] == 0
    total, by_source, measures = learner(batch.tensors)
    torch.testing.assert_close(by_source.sum(), total.detach())
    assert measures.shape == (len(goal.measures), 3)
    singles = [learner(goal.collate([row], 5, 3).tensors) for row in tiny.examples(0, 4)]
    torch.testing.assert_close(sum(s[1] for s in singles), by_source, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(s[2] for s in singles), measures, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["bert_tiny", "gpt2_tiny"])
def test_accuracy_is_the_share_of_targets_with_the_highest_score(tmp_path, shape):
    learner = tiny.learner(tmp_path, shape).eval()
    tensors = dict(learner.objective.collate(tiny.examples(0, 4), 5, 2).tensors)
    logits = learner.backbone(**isolated_inputs(learner.backbone, tensors)).logits.flatten(0, 1)
    best = logits[tensors["at"]].argmax(1)
    tensors["labels"][::2] = best[::2]
    assert learner.objective.measures[0] == "accuracy"
    hits = float(learner(tensors)[2][0].sum())
    assert hits == int((best == tensors["labels"]).sum()) >= len(best) // 2


@pytest.mark.parametrize("shape", tiny.ENCODERS)
def test_the_head_at_the_targets_is_the_whole_head(tmp_path, shape):
    learner = tiny.learner(tmp_path, shape)
    tensors = learner.objective.collate(tiny.examples(0, 4), 5, 2).tensors
    ours = learner(tensors)[0]
    ours.backward()
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    logits = learner.backbone(**isolated_inputs(learner.backbone, tensors)).logits.flatten(0, 1)
    theirs = cross_entropy(logits[tensors["at"]], tensors["labels"], reduction="sum")
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for found, parameter in zip(gradients, learner.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-6)


def test_an_architecture_without_a_known_head_gives_the_same_loss(tmp_path, monkeypatch):
    learner = tiny.learner(tmp_path)
    tensors = learner.objective.collate(tiny.examples(0, 4), 5, 2).tensors
    known = learner(tensors)[0]
    monkeypatch.delitem(mlm._HEADS, "bert")
    torch.testing.assert_close(known, learner(tensors)[0], rtol=1e-6, atol=1e-6)


@given(sample=st.integers(0, 2**40), lengths=st.lists(st.integers(3, 8), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_targets_are_words_and_everything_else_stays(sample, lengths):
    row = tiny.example(sample, lengths=lengths)
    tensors = masked(masking=DynamicMasking(rate=0.4)).collate([row], 5, 1).tensors
    at = tensors["at"].numpy()
    assert len(at) > 0
    assert not row.special[at].any()
    assert (tensors["labels"].numpy() == row.tokens[at]).all()
    untouched = np.setdiff1d(np.arange(tiny.LENGTH), at)
    assert (tensors["tokens"][0].numpy()[untouched] == row.tokens[untouched]).all()


def test_shares_of_mask_random_and_kept():
    goal = masked(masking=DynamicMasking(rate=1.0), masked=0.5, random=0.3)
    rows = [tiny.example(i, lengths=(24,)) for i in range(400)]
    tensors = goal.collate(rows, 5, 1).tensors
    shown = tensors["tokens"].flatten()[tensors["at"]]
    hidden = (shown == MASK).float().mean()
    kept = (shown == tensors["labels"]).float().mean()
    # 8,800 draws: the standard deviation is below 0.006. A random token is the old one in 1 of 59.
    assert abs(float(hidden) - 0.5) < 0.03
    assert abs(float(kept) - 0.2 - 0.3 / 59) < 0.03
    drawn = shown[(shown != MASK) & (shown != tensors["labels"])]
    assert int(drawn.min()) >= len(tiny.SPECIAL)
    assert len(drawn.unique()) == tiny.VOCABULARY - len(tiny.SPECIAL)


def test_shares_above_one_and_a_missing_mask_token_are_refused():
    with pytest.raises(ValidationError, match="is more than 1"):
        MaskedLanguageModelling(masked=0.8, random=0.3)
    with pytest.raises(DataError, match="no mask token"):
        MaskedLanguageModelling().build({"pad": 0}, 64)


def test_the_next_token_is_never_asked_across_documents(tmp_path):
    row = tiny.example(1, lengths=(9, 7))
    batch = CausalLanguageModelling().build({}, 64).collate([row], 5, 1)
    assert batch.tensors["at"].tolist() == [*range(8), *range(9, 15)]
    assert batch.tensors["labels"].tolist() == [*row.tokens[1:9], *row.tokens[10:16]]
    assert batch.count == 14
    learner = tiny.learner(tmp_path, "gpt2_tiny").eval()
    alone = [
        learner.backbone(
            input_ids=torch.from_numpy(row.tokens[a:b]).long()[None],
            labels=torch.from_numpy(row.tokens[a:b]).long()[None],
        ).loss
        * (b - a - 1)
        for a, b in ((0, 9), (9, 16))
    ]
    torch.testing.assert_close(learner(batch.tensors)[0], sum(alone), rtol=1e-5, atol=1e-5)


def test_a_batch_without_targets_still_has_a_gradient(tmp_path):
    learner = tiny.learner(tmp_path)
    batch = learner.objective.collate([tiny.example(0, lengths=())], 5, 1)
    assert batch.count == 0
    total, *_ = learner(batch.tensors)
    total.backward()
    assert total.item() == 0.0
