"""Activations by arithmetic, held against what autograd saves."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.activations import Rows, activations, beside_teacher, head_bytes, layer_bytes
from engine.models import read_shape
from engine.objectives.vocabulary import losses_of
from engine.parameter_shapes import model_shape
from engine.penalties.distillation import divergence
from tests.engine import tiny

ROWS = 8


def saved(learner: torch.nn.Module, tensors: Any) -> int:
    """Bytes of what a forward pass keeps beside the weights."""
    held = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learner(tensors)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for at, size in sizes.items() if at not in held)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["bert_tiny", "modernbert_tiny", "gpt2_tiny", "llama_tiny", "mixtral_tiny"]
)
def test_a_layer_saves_what_is_planned(name: str, kind: torch.dtype, tmp_path: Path) -> None:
    layers = "n_layer" if name == "gpt2_tiny" else "num_hidden_layers"
    # ModernBERT's first layer has one norm less.
    few, more = (3, 6) if name == "modernbert_tiny" else (2, 4)
    found = []
    for count in (few, more):
        learner = tiny.learner(tmp_path, name, **{layers: count}).to(kind)
        batch = tiny.step_batches(learner.objective, 0, 0, 1, 1, rows=ROWS)[0]
        found.append(saved(learner, batch.tensors))
    quiet = read_shape(name) | dict.fromkeys(tiny.dropouts(name), 0.0)
    architecture: Any = "masked_lm" if "bert" in name else "causal_lm"
    shape = model_shape(quiet, architecture, tiny.VOCABULARY)
    rows = Rows(ROWS, tiny.LENGTH, 0, kind.itemsize)
    measured = (found[1] - found[0]) / (more - few)
    # A mixture's router, and statistics of norms, are left out or rounded up.
    assert layer_bytes(shape.model_type, shape.sizes, rows) == pytest.approx(measured, rel=0.035)


def test_recomputing_keeps_the_inputs_of_layers() -> None:
    shape = model_shape({"model_type": "bert"}, "masked_lm")
    rows = Rows(8, 512, 600, 2)
    whole = activations(shape, rows)
    all_again = activations(shape, Rows(8, 512, 600, 2, recomputed_every=1))
    third = activations(shape, Rows(8, 512, 600, 2, recomputed_every=3))
    inputs = 2 * 8 * 512 * 768
    assert all_again.layers == 12 * inputs + 2 * inputs
    assert all_again.recomputed == layer_bytes("bert", shape.sizes, rows)
    assert whole.layers - third.layers == 4 * (all_again.recomputed - inputs)
    assert all_again.bytes < third.bytes < whole.bytes


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_pieces_keep_what_is_planned(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from engine import activations as planned
    from engine.objectives import vocabulary

    targets, classes, hidden = 300, 900, 48
    for module in (planned, vocabulary):
        monkeypatch.setattr(module, "targets_at_once", lambda _: 64)
    output = torch.nn.Linear(hidden, classes, bias=False).to(kind)
    output.__class__ = vocabulary.VocabularyLayer
    given = torch.randn(targets, hidden).to(kind).requires_grad_()
    labels = torch.zeros(targets, dtype=torch.long)
    kept = saved(_Scored(output, labels), given)
    shape: Any = SimpleNamespace(
        output="output", sizes=SimpleNamespace(vocabulary=classes, hidden=hidden)
    )
    told = planned.head_bytes(shape, Rows(1, 512, targets, kind.itemsize))
    at_once = planned.head_bytes(shape, Rows(1, 512, 64, kind.itemsize))
    assert told - at_once == kept
    whole = planned.head_bytes(shape, Rows(1, 512, targets, kind.itemsize, in_pieces=False))
    assert whole == pytest.approx(at_once * targets / 64)


class _Scored(torch.nn.Module):
    def __init__(self, output: torch.nn.Module, labels: torch.Tensor) -> None:
        super().__init__()
        self.output = output
        self.labels = labels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        from engine.objectives.vocabulary import target_losses

        return target_losses(self.output, hidden, self.labels).total


class Peak(TorchDispatchMode):
    """The most bytes of storages that live at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._alive:
                self._alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, which: int, size: int) -> None:
        self._alive.discard(which)
        self.now -= size


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_two_models_predictions_are_compared_within_what_is_planned(kind: torch.dtype) -> None:
    targets, size = 300, 1000
    ours = torch.randn(targets, 4, dtype=kind, requires_grad=True)
    table = torch.randn(size, 4, dtype=kind)
    labels = torch.randint(0, size, (targets,))
    with Peak() as peak:
        logits = ours @ table.T
        with torch.no_grad():
            theirs = ours @ table.T
        apart = divergence(logits, theirs, 2.0)
        (losses_of(logits, labels).total + apart.sum()).backward()
    shape = model_shape({"model_type": "bert", "vocab_size": size}, "masked_lm")
    rows = Rows(4, 128, targets, kind.itemsize, are_compared=True)
    assert head_bytes(shape, rows) == pytest.approx(peak.most, rel=0.02)


def test_a_teacher_reads_when_the_layers_are_saved() -> None:
    shape = model_shape({"model_type": "bert"}, "masked_lm")
    large = model_shape({"model_type": "bert", "hidden_size": 4096}, "masked_lm")
    rows = Rows(8, 512, 1, 2, are_compared=True)
    alone = activations(shape, rows)
    assert beside_teacher(alone, large, rows).head > alone.head
    assert beside_teacher(alone, large, rows).layers == alone.layers
    many = Rows(8, 512, 4096, 2, are_compared=True)
    assert beside_teacher(activations(shape, many), shape, many) == activations(shape, many)
