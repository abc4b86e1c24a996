"""The plain backend: accumulation, bf16, clipping, its state, and what it refuses."""

import json

import pytest
import torch

from configs.errors import CheckpointError, RecipeError
from engine.backends import DeepSpeedZero, Plain
from engine.loop import train_step
from engine.optimization import AdamW, Constant
from engine.penalties import StartingPoint
from engine.protocols import Run
from tests.engine import tiny

BF16 = {"bf16": {"enabled": True}}


def backend_of(folder, shape="bert_tiny", pull=0.0, **config):
    penalties = [StartingPoint(strength=pull).build()] if pull else []
    plain = Plain(config={"train_batch_size": 8, **config})
    return plain.build(tiny.learner(folder, shape), AdamW(lr=1e-2), penalties, 0)


def curve(backend, start=0, stop=3):
    goal, parts = backend.learner.objective, backend.accumulation
    batches = [tiny.step_batches(goal, step, 0, 1, parts) for step in range(start, stop)]
    run = Run(backend, iter(batches), Constant(), 1e-2, 99, 1)
    records = [train_step(run, step) for step in range(start, stop)]
    return [(float(r.losses[0] / r.counts[0]), float(r.gradient_norm)) for r in records]


def test_accumulation_changes_nothing(tmp_path):
    whole = curve(backend_of(tmp_path))
    for micro in (4, 2, 1):
        parts = curve(backend_of(tmp_path, train_micro_batch_size_per_gpu=micro))
        torch.testing.assert_close(torch.tensor(parts), torch.tensor(whole), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_bf16_stays_near_fp32_and_keeps_rotary_frequencies(tmp_path, shape):
    low = backend_of(tmp_path, shape, **BF16)
    near = {"rtol": 5e-3, "atol": 5e-3}
    losses = [loss for loss, _ in curve(low)]
    expected = [loss for loss, _ in curve(backend_of(tmp_path, shape))]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), **near)
    assert {p.dtype for p in low.learner.parameters()} == {torch.bfloat16}
    assert {f.tensor.dtype for f in low.fragments()} == {torch.float32}
    rotary = [b for n, b in low.learner.named_buffers() if n.endswith("inv_freq")]
    assert all(b.dtype is torch.float32 for b in rotary)
    assert bool(rotary) == (shape in {"modernbert_tiny", "llama_tiny", "mixtral_tiny"})


def test_clipping_bounds_the_update_but_not_the_norm_that_is_told(tmp_path):
    # With a pull, which is added after clipping, the size of the gradient matters to Adam.
    free = curve(backend_of(tmp_path, pull=1.0, gradient_clipping=0))
    clipped = curve(backend_of(tmp_path, pull=1.0, gradient_clipping=0.1))
    assert free[0] == clipped[0]
    assert free[2][0] != pytest.approx(clipped[2][0], rel=1e-4)


@pytest.mark.parametrize("config", [{}, BF16])
def test_fragments_continue_bit_for_bit(tmp_path, config):
    backend = backend_of(tmp_path, pull=0.5, **config)
    curve(backend)
    saved = {(f.name, f.key): f.tensor.clone() for f in backend.fragments()}
    extra = json.loads(json.dumps(backend.extra_state()))
    expected = curve(backend, 3, 6)
    assert {key for _, key in saved} == {"fp32", "exp_avg", "exp_avg_sq", "l2_sp.anchor"}
    other = backend_of(tmp_path, pull=0.5, **config)
    keys = sorted({key for _, key in saved})
    other.load_fragments(lambda n, k, s, c: saved[n, k][s : s + c], keys, 3)
    other.load_extra_state(extra)
    assert curve(other, 3, 6) == expected


def test_skipped_steps_count_before_or_after_the_fragments(tmp_path):
    backend = backend_of(tmp_path)
    curve(backend)
    saved = {(f.name, f.key): f.tensor.clone() for f in backend.fragments()}
    made = []
    for order in ("first", "last"):
        other = backend_of(tmp_path)
        if order == "first":
            other.load_extra_state({"skipped_steps": 2})
        other.load_fragments(
            lambda n, k, s, c: saved[n, k][s : s + c], ["exp_avg", "exp_avg_sq"], 5
        )
        other.load_extra_state({"skipped_steps": 2})
        made.append(curve(other, 3, 5))
    assert made[0] == made[1] == curve(backend, 3, 5)


def test_states_of_another_optimizer_are_refused(tmp_path):
    backend = backend_of(tmp_path, pull=0.5)
    with pytest.raises(CheckpointError, match=r"l2_sp\.anchor"):
        backend.load_fragments(lambda *_: torch.zeros(0), ["exp_avg", "exp_avg_sq"], 3)


def test_a_checkpoint_before_the_first_step_holds_weights_alone(tmp_path):
    backend = backend_of(tmp_path, pull=0.5)
    saved = {(f.name, f.key): f.tensor.clone() for f in backend.fragments()}
    assert {key for _, key in saved} == {"fp32"}
    expected = curve(backend)
    curve(backend, 3, 5)
    backend.load_fragments(lambda n, k, s, c: saved[n, k][s : s + c], ["fp32"], 0)
    assert curve(backend) == expected


def test_evaluation_has_no_dropout_no_gradient_and_no_effect(tmp_path):
    noisy = tiny.learner(tmp_path, hidden_dropout_prob=0.5)
    backend = Plain(config={"train_batch_size": 8}).build(noisy, AdamW(lr=1e-2), (), 0)
    batch = noisy.objective.collate(tiny.examples(0, 4), 5, 2)
    first, again = backend.evaluate(batch), backend.evaluate(batch)
    assert torch.equal(first.total, again.total)
    assert not first.total.requires_grad
    assert noisy.training
    assert backend.forward(batch).total.requires_grad


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 1}}, "has no ZeRO"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {}}}, "has no ZeRO"),
        ({"fp16": {"enabled": True}}, "fp16 needs"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "bf16_optimizer_states"),
        ({"flops_profiler": {}}, "cannot honour flops_profiler"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 3"),
    ],
)
def test_plain_refuses_what_it_cannot_honour(config, message):
    with pytest.raises(RecipeError, match=message):
        Plain(config={"train_batch_size": 8, **config}).check()


def test_plans():
    assert DeepSpeedZero(config="zero1_bf16").plan(4).accumulation == 8
    assert Plain(config={"train_batch_size": 8}).plan(1).micro_batch == 8
    with pytest.raises(RecipeError, match="one process, not 2"):
        Plain(config={"train_batch_size": 8}).plan(2)


def test_a_run_that_only_skipped_has_no_optimizer_state_to_take_back(tmp_path):
    backend = backend_of(tmp_path)
    saved = {(f.name, f.key): f.tensor.clone() for f in backend.fragments()}
    expected = curve(backend, 2, 4)
    other = backend_of(tmp_path)
    other.load_extra_state({"skipped_steps": 2})
    other.load_fragments(lambda n, k, s, c: saved[n, k][s : s + c], ["fp32"], 2)
    assert curve(other, 2, 4) == expected
    taken = backend_of(tmp_path)
    taken.load_extra_state({"skipped_steps": 1})
    with pytest.raises(CheckpointError, match="it holds the optimizer states"):
        taken.load_fragments(lambda n, k, s, c: saved[n, k][s : s + c], ["fp32"], 2)
