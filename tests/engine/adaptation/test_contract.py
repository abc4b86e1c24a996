"""What every adaptation promises, over all tiny shapes that it fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.errors import RecipeError
from engine.additions import WEIGHTS, carried
from engine.checkpoint import FragmentStore, describe, export_model, export_problems, save
from engine.frozen import frozen_digest
from engine.isolation import isolated_inputs
from engine.learner import Learner
from engine.models import PretrainedModel, read_shape
from engine.optimization import AdamW, Lion, Muon
from engine.parameter_shapes import model_shape
from engine.planner import Weights
from engine.protocols import Progress
from engine.stage_memory import weights_in, weights_of
from tests.engine import tiny
from tests.engine.adaptation import cases

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft, of Conv1D
fitting = pytest.mark.parametrize(("kind", "shape"), cases.FITTING)
PROBE = torch.arange(5, 5 + 2 * tiny.LENGTH).view(2, -1)


@fitting
def test_it_learns_and_what_is_frozen_stays(tmp_path, kind, shape):
    plain = tiny.learner(tmp_path, shape)
    learner = tiny.learner(tmp_path, shape, cases.KINDS[kind].build(0))
    batch = cases.batch(learner, kind)
    first = cases.loss(learner, batch)
    if kind in cases.AS_BEFORE:
        assert first == pytest.approx(cases.loss(plain, batch), rel=1e-5)
    before, digest = cases.values(learner), frozen_digest(learner)
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert cases.train_on(learner, batch, 4) < first - 1e-4 * batch.count
    assert frozen_digest(learner) == digest
    for name, value in cases.values(learner).items():
        # A gradient may be none: a key's bias changes no softmax.
        if name not in trained:
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, before[n]) for n, value in cases.values(learner).items())


@pytest.mark.parametrize("kind", cases.KINDS)
def test_its_first_weights_are_keyed(tmp_path, kind):
    shape = "bert_tiny"
    one, same, other = (
        cases.values(tiny.learner(tmp_path, shape, cases.KINDS[kind].build(seed)))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in same)
    is_random = kind in {"lora", *cases.ADDED}
    assert any(not torch.equal(one[name], other[name]) for name in other) == is_random


@pytest.mark.parametrize(("kind", "shape"), [pair for pair in cases.FITTING if pair[0] != "prompt"])
def test_documents_in_a_row_do_not_see_one_another(tmp_path, kind, shape):
    learner = tiny.learner(tmp_path, shape, cases.KINDS[kind].build(0))
    cases.train_on(learner, cases.batch(learner, kind), 2)
    learner.eval()
    tensors = learner.objective.collate(tiny.examples(0, 1), 5, 2).tensors
    changed = dict(tensors) | {"tokens": tensors["tokens"].clone()}
    second = tensors["segments"] == 2
    changed["tokens"][second] = (tensors["tokens"][second] + 7) % tiny.VOCABULARY
    with torch.no_grad():
        states, others = (
            learner.backbone.base_model(**isolated_inputs(learner.backbone, given))[0]
            for given in (tensors, changed)
        )
    first = tensors["segments"] == 1
    if shape == "mixtral_tiny":
        # Its experts multiply other numbers of tokens together, and so round differently.
        assert torch.allclose(states[first], others[first], atol=1e-4)
    else:
        assert torch.equal(states[first], others[first])
    assert not torch.equal(states[second], others[second])


OPTIMIZERS: dict[str, Any] = {
    "adamw": AdamW(lr=1e-3),
    "lion": Lion(lr=1e-3, layer_decay=0.9),
    "muon": Muon(lr=1e-3, layer_decay=0.9, rates={"backbone.": 0.5}),
}


@fitting
def test_a_shape_tells_what_trains_and_in_which_groups(tmp_path, kind, shape):
    learner = tiny.learner(tmp_path, shape, cases.KINDS[kind].build(0))
    architecture = "causal_lm" if shape in tiny.DECODERS else "masked_lm"
    told = model_shape(read_shape(shape), architecture, tiny.VOCABULARY)
    for name, optimizer in OPTIMIZERS.items():
        stage: Any = SimpleNamespace(adaptation=cases.KINDS[kind], optimizer=optimizer)
        if name == "muon" and kind in {"bitfit", "prompt"}:
            with pytest.raises(RecipeError, match="no matrix of the model's layers is trained"):
                weights_of(stage, told)
            with pytest.raises(RecipeError, match="no matrix of the model's layers is trained"):
                optimizer.groups(learner)
            continue
        planned, real = weights_of(stage, told), weights_in(learner, optimizer)
        assert sorted(planned.frozen) == sorted(real.frozen)
        assert groups(planned) == groups(real)
        built = optimizer.build(learner).param_groups
        counts = [[p.numel() for p in group["params"]] for group in built]
        assert counts == [list(group.tensors) for group in real.groups]


def groups(weights: Weights) -> list[Any]:
    """In their order, each with its tensors in any: transformers names tied ones here or there."""
    return [(sorted(group.tensors), group.states, group.working) for group in weights.groups]


def exported(folder: Path, shape: str, adaptation, learner, **changes):
    """The export of a trained learner, which it leaves as it is."""
    from transformers import AutoTokenizer

    from engine.optimization import AdamW

    backend = cases.Plain(config={"train_batch_size": 4}).build(learner, AdamW(lr=1e-2), (), 0)
    store = FragmentStore(save(folder / "checkpoints", Progress(1), backend, {}, "key"))
    words = AutoTokenizer.from_pretrained(tiny.tokenizer_folder(folder / "tokenizer"))
    fresh = adaptation.build(0)
    other = tiny.learner(folder, shape, fresh, **changes)
    return export_model(store, other, fresh, words, folder / "export", {}, PROBE)


def built(folder: Path, learner, shape: str, *, shared_rows: bool = True):
    model = PretrainedModel(location=str(folder / "export"))
    goal = tiny.objective(shape)
    loaded = model.build(Path, goal.architecture, 0, shared_rows=shared_rows)
    return Learner(loaded.model, goal)


@fitting
def test_an_export_is_what_was_trained(tmp_path, kind, shape):
    adaptation = cases.KINDS[kind]
    learner = tiny.learner(tmp_path, shape, adaptation.build(0))
    batch = cases.batch(learner, kind)
    expected = cases.train_on(learner, batch, 2)
    done = exported(tmp_path, shape, adaptation, learner)
    again = built(tmp_path, learner, shape, shared_rows=kind != "prompt")
    assert cases.loss(again, batch) == pytest.approx(expected, rel=1e-5)
    assert all(p.requires_grad for p in again.parameters())
    assert not export_problems(done.folder)

    names = [addition.name for addition in carried(again.backbone)]
    assert describe(done.folder)["adaptations"] == names
    assert bool(names) == (kind in cases.ADDED) == (done.folder / WEIGHTS).exists()
    if names:
        small = (done.folder / WEIGHTS).stat().st_size
        assert small < 0.2 * (done.folder / "model.safetensors").stat().st_size
        # The folder beside it is the plain model, untouched.
        plain = tiny.learner(tmp_path, shape).backbone.state_dict()
        own = again.backbone.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in plain.items())
