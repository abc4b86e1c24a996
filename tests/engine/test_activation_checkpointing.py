"""Recomputed layers give the same numbers to the last bit, and keep less in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.errors import RecipeError
from engine.activation_checkpointing import ActivationCheckpointing, recomputable
from engine.adaptation import FullTraining, LowRank
from engine.kernels.choice import quicken
from engine.learner import Learner
from engine.objectives import CausalLanguageModelling
from engine.objectives.routing import RouterBalance
from tests.engine import tiny

DROPOUT = {
    "modernbert_tiny": ("attention_dropout", "mlp_dropout", "embedding_dropout"),
    "llama_tiny": ("attention_dropout",),
    "mixtral_tiny": ("attention_dropout",),
}


def learner(
    folder: Path, shape: str, every: int | None = None, layers: int = 3, adaptation: Any = None
) -> Learner:
    """One with dropout, and layers marked."""
    sizes: dict[str, Any] = {"n_layer" if shape.startswith("gpt2") else "num_hidden_layers": layers}
    rates = dict.fromkeys(DROPOUT.get(shape) or tiny.dropouts(shape), 0.2)
    if shape == "modernbert_tiny":
        sizes["layer_types"] = ["full_attention", *["sliding_attention"] * (layers - 1)]
    made = tiny.learner(folder, shape, adaptation or FullTraining(), **sizes, **rates)
    quicken(made.backbone, torch.device("cpu"), "fp32", tiny.LENGTH)
    if every is not None:
        ActivationCheckpointing(every=every).apply(made.backbone)
    return made


def step(of: Learner, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss and gradients of a micro-batch, as a backend makes them."""
    of.to(dtype)
    tensors = of.objective.collate(tiny.examples(0, 4), 5, 2).tensors
    torch.manual_seed(7)
    total, *_ = of(tensors)
    total.backward()
    return total.detach(), {n: p.grad for n, p in of.named_parameters() if p.requires_grad}


def require_equal(one: Learner, other: Learner, dtype: torch.dtype = torch.float32) -> None:
    (loss, gradients), (expected, wanted) = step(one, dtype), step(other, dtype)
    assert torch.equal(loss, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, wanted[name]), name


def kept_bytes(of: Learner) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights not counted."""
    tensors = of.objective.collate(tiny.examples(0, 4), 5, 2).tensors
    weights = {p.untyped_storage().data_ptr() for p in of.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        of(tensors)[0].backward()
    return sum(kept.values())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_losses_and_gradients_are_the_same_bits_with_dropout(tmp_path, shape):
    plain = learner(tmp_path, shape)
    assert not torch.equal(step(plain)[0], step(learner(tmp_path, shape).eval())[0])
    for every in (1, 2):
        require_equal(learner(tmp_path, shape, every), learner(tmp_path, shape))


def test_attention_runs_by_the_kernel_of_the_forward_pass(tmp_path):
    pair = [learner(tmp_path, "bert_tiny", every) for every in (1, None)]
    require_equal(*pair, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft, of GPT-2's Conv1D
@pytest.mark.parametrize("shape", ["bert_tiny", "gpt2_tiny", "llama_tiny"])
def test_inputs_without_gradient_lose_none(tmp_path, shape):
    pair = [
        learner(tmp_path, shape, every, adaptation=LowRank(rank=2, dropout=0.1).build(0))
        for every in (1, None)
    ]
    require_equal(*pair)


def test_routers_told_to_the_objective_are_recomputed_too(tmp_path):
    goal = CausalLanguageModelling(balance=RouterBalance(weight=0.5))
    objective = goal.build(tiny.SPECIAL, tiny.VOCABULARY)
    pair = [
        Learner(learner(tmp_path, "mixtral_tiny", every).backbone, objective) for every in (1, None)
    ]
    require_equal(*pair)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_less_is_kept_the_more_layers_are_recomputed(tmp_path, shape):
    every_layer, every_second, none = (
        kept_bytes(learner(tmp_path, shape, every, layers=4)) for every in (1, 2, None)
    )
    deeper = kept_bytes(learner(tmp_path, shape, 1, layers=8))
    fully_deeper = kept_bytes(learner(tmp_path, shape, None, layers=8))
    assert every_layer < every_second < none
    # A layer more costs its input alone: a small share of what it kept.
    assert deeper - every_layer < 0.25 * (fully_deeper - none)


def test_evaluation_recomputes_nothing(tmp_path):
    of = learner(tmp_path, "bert_tiny", 1).eval()
    assert kept_bytes(of) == kept_bytes(learner(tmp_path, "bert_tiny").eval())


def test_every_kth_layer_from_the_first_on(tmp_path):
    of = learner(tmp_path, "gpt2_tiny", 2, layers=5)
    marked = [layer.gradient_checkpointing for layer in recomputable(of.backbone)]
    assert marked == [True, False, True, False, True]
    with pytest.raises(RecipeError, match="every is 6, but the model has 5 layers"):
        ActivationCheckpointing(every=6).apply(of.backbone)


def test_a_model_without_layers_is_refused():
    with pytest.raises(RecipeError, match="Linear has no layers that transformers can recompute"):
        ActivationCheckpointing().apply(nn.Linear(2, 2))
