"""Attention by documents against the block mask, for every architecture that has it."""

import inspect
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from engine.isolation import isolated_inputs
from engine.kernels import attention
from engine.rows import bounds_of
from tests.engine import tiny

SEGMENTS = np.array(
    [[1] * 11 + [2] * 9 + [3] * 4, [1] * 24, [1] * 3 + [2] * 10 + [0] * 11, [1] * 2 + [2] * 22]
)


def rows() -> dict[str, torch.Tensor]:
    positions = np.zeros_like(SEGMENTS)
    for row, segments in enumerate(SEGMENTS):
        for segment in np.unique(segments):
            here = np.flatnonzero(segments == segment)
            positions[row, here] = np.arange(len(here))
    tokens = np.random.default_rng(0).integers(5, tiny.VOCABULARY, SEGMENTS.shape)
    return {
        "tokens": torch.from_numpy(tokens),
        "segments": torch.from_numpy(SEGMENTS),
        "positions": torch.from_numpy(positions),
        "bounds": torch.from_numpy(bounds_of(SEGMENTS)),
    }


def outcome(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of what is no padding, and all gradients of a loss over them."""
    model.zero_grad()
    logits = model(**isolated_inputs(model, given)).logits[given["segments"] > 0]
    (logits.float() ** 2).mean().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_outputs_and_gradients_are_those_of_the_block_mask(tmp_path, shape, kind):
    model = tiny.learner(tmp_path, shape).backbone.to(kind).train()
    assert attention.suits(model, torch.device("cpu"), kind, 24)
    masked = outcome(model, rows())
    attention.use(model)
    inputs = isolated_inputs(model, rows())
    assert "attention_mask" not in inputs
    by_documents = outcome(model, rows())
    within = {"atol": 1e-6, "rtol": 1e-5} if kind is torch.float32 else {"atol": 2e-2, "rtol": 5e-2}
    torch.testing.assert_close(by_documents[0], masked[0], **within)
    assert len(by_documents[1]) == len(masked[1])
    for ours, theirs in zip(by_documents[1], masked[1], strict=True):
        torch.testing.assert_close(ours, theirs, **within)


WINDOWS: dict[str, dict[str, Any]] = {
    "modernbert_tiny": {"local_attention": 6},
    "mixtral_tiny": {"sliding_window": 4},
}


@pytest.mark.parametrize("shape", WINDOWS)
def test_a_window_is_kept_where_documents_of_unlike_length_share_a_group(tmp_path, shape):
    """What a group has too much may lie beyond everybody's sight; nothing comes back from there."""
    model = tiny.learner(tmp_path, shape, **WINDOWS[shape]).backbone.train()
    masked = outcome(model, rows())
    attention.use(model)
    by_documents = outcome(model, rows())
    torch.testing.assert_close(by_documents[0], masked[0], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(by_documents[1], masked[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_gpt2_is_not_asked_for_a_mask(tmp_path, monkeypatch):
    """Looking for padding would wait for the device in each pass."""
    model = tiny.learner(tmp_path, "gpt2_tiny").backbone
    model.config.pad_token_id = 0
    attention.use(model)
    looked = []
    monkeypatch.setattr(torch.Tensor, "__contains__", lambda *_: looked.append(1) or False)
    model(**isolated_inputs(model, rows()))
    assert not looked


def test_it_is_refused_where_it_would_not_be_the_same(tmp_path):
    model = tiny.learner(tmp_path).backbone
    cpu = torch.device("cpu")
    assert not attention.suits(model, cpu, torch.float32, attention.LONGEST + 1)
    other = SimpleNamespace(config=SimpleNamespace(_attn_implementation="eager", model_type="bert"))
    assert not attention.suits(other, cpu, torch.float32, 24)
    unknown = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa", model_type="esm"))
    assert not attention.suits(unknown, cpu, torch.float32, 24)


@pytest.mark.parametrize("lengths", [[5], [24, 24], [3, 9, 12, 30, 31, 33, 200], [1] * 40, [7, 1]])
def test_every_token_is_in_one_group_once(lengths):
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    groups = attention.documents_of(bounds, 256).groups
    found = []
    for group in groups:
        real = torch.ones_like(group.tokens).bool() if group.beyond is None else ~group.beyond
        found += group.tokens[real].tolist()
        assert real.sum() >= 0.4 * group.tokens.numel()
        for tokens, here in zip(group.tokens, real, strict=True):
            run = tokens[here]
            assert run.tolist() == list(range(int(run[0]), int(run[0]) + len(run)))
            assert int(run[0]) in bounds.tolist()
    assert sorted(found) == list(range(sum(lengths)))


def parts(rate: float) -> tuple[list[torch.Tensor], attention.Documents, attention.Way]:
    torch.manual_seed(1)
    made = [torch.randn(4, 24, 2, 8, dtype=torch.float32, requires_grad=True) for _ in range(3)]
    documents = attention.documents_of(torch.from_numpy(bounds_of(SEGMENTS)), 24)
    return made, documents, attention.Way(False, None, 8**-0.5, rate)


def test_dropout_takes_its_share_and_gradients_are_those_of_what_was_kept():
    """Against finite differences of the very same drawing."""
    made, documents, way = parts(0.3)
    value = made[2]

    def total() -> torch.Tensor:
        torch.manual_seed(5)
        return attention._ByDocuments.apply(*made, documents, way).double().square().sum()

    total().backward()
    assert value.grad is not None
    rng = np.random.default_rng(0)
    for part in made:
        for _ in range(4):
            place = tuple(int(rng.integers(n)) for n in part.shape)
            slope, step = part.grad[place].item(), 1e-2
            with torch.no_grad():
                part[place] += step
                above = total().item()
                part[place] -= 2 * step
                below = total().item()
                part[place] += step
            assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_dropout_keeps_the_mean():
    made, documents, way = parts(0.3)
    ones = [made[0], made[1], torch.ones_like(made[2])]
    torch.manual_seed(2)
    drawn = [attention._ByDocuments.apply(*ones, documents, way).mean() for _ in range(30)]
    assert torch.stack(drawn).mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.stack(drawn).std() > 0


def by_hand(told: dict[str, Any]) -> torch.Tensor:
    """What torch's kernel computes, document by document."""
    limits = told["cu_seq_q"].tolist()
    assert told["cu_seq_q"].dtype == torch.int32
    assert max(np.diff(limits)) <= told["max_q"] == told["max_k"]
    query, key, value = (told[name] for name in ("query", "key", "value"))
    left, right = (side if side >= 0 else limits[-1] for side in told["window_size"])
    answer = torch.empty_like(query)
    for start, stop in pairwise(limits):
        places = torch.arange(stop - start)
        ahead = places[None] - places[:, None]
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in (query, key, value))
        answer[start:stop] = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=(ahead <= right) & (-ahead <= left),
            scale=told["scale"],
            enable_gqa=told.get("enable_gqa", False),
        )[0].transpose(0, 1)
    return answer


def of_211(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    """torch 2.11's signature."""
    del cu_seq_k
    named = {"query": query, "key": key, "value": value, "cu_seq_q": cu_seq_q}
    named |= {"max_q": max_q, "max_k": max_k}
    return by_hand(named | {"scale": scale, "window_size": window_size})


@pytest.mark.parametrize("older", [False, True])
def test_a_gpu_is_given_the_bounds_as_torch_wants_them(tmp_path, monkeypatch, older):
    """torch's kernel has no CPU form: one of the same signature stands in for it."""
    wanted = inspect.signature(varlen.varlen_attn)
    seen = []

    def of_this_torch(*given: Any, **named: Any) -> torch.Tensor:
        bound = wanted.bind(*given, **named)
        bound.apply_defaults()
        seen.append(bound.arguments)
        return by_hand(bound.arguments)

    of_this_torch.__signature__ = wanted
    monkeypatch.setattr(varlen, "varlen_attn", of_211 if older else of_this_torch)

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        del mask
        causal = bool(getattr(module, "is_causal", False))
        way = attention.Way(causal, given.get("sliding_window"), given["scaling"], 0.0)
        return attention._flash((query, key, value), given["documents"], way), None

    for shape in tiny.SHAPES:
        model = tiny.learner(tmp_path, shape, **WINDOWS.get(shape, {})).backbone.eval()
        masked = outcome(model, rows())
        with monkeypatch.context() as patched:
            patched.setattr(attention, "attend", flash)
            attention.use(model)
        ours = outcome(model, rows())
        torch.testing.assert_close(ours[0], masked[0], atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(ours[1], masked[1], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    windows = {told["window_size"] for told in seen}
    assert older or windows >= {(-1, -1), (-1, 0), (3, 3), (3, 0)}
