"""Exports: transformers alone loads what was trained, or there is no export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from configs.errors import CheckpointError, DataError
from engine.adaptation import FullTraining, LowRank
from engine.backends import Plain
from engine.checkpoint import (
    FragmentStore,
    describe,
    export_model,
    export_problems,
    read_card,
    save,
)
from engine.checkpoint.export import CARD, _compare_losses
from engine.loop import train_step
from engine.optimization import AdamW, Constant
from engine.protocols import Adaptation, Progress, Run
from tests.engine import tiny

CONFIG = {"train_batch_size": 8}
LINEAGE = {"stage": "dapt", "data": {"domain": "0123abcd"}}
PROBE = np.random.default_rng(0).integers(5, tiny.VOCABULARY, (2, tiny.LENGTH))


class HeadedObjective:
    """An objective with a head of its own, which no export may carry."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.architecture, self.measures = inner.architecture, inner.measures

    def modules(self, backbone: nn.Module) -> nn.ModuleDict:
        del backbone
        return nn.ModuleDict({"extra": nn.Linear(3, 1)})

    def collate(self, *arguments: Any, **keywords: Any) -> Any:
        return self._inner.collate(*arguments, **keywords)

    def loss(self, learner: Any, tensors: Any) -> Any:
        found = self._inner.loss(learner, tensors)
        pull = sum(p.float().sum() for p in learner.heads.parameters())
        return type(found)(found.total + pull, found.by_source, found.measures)


def learner_of(folder: Path, shape: str, adaptation: Adaptation, **changes: Any) -> Any:
    from engine.learner import Learner

    plain = tiny.learner(folder, shape, adaptation, **changes)
    return Learner(plain.backbone, HeadedObjective(plain.objective))


def trained(
    folder: Path, shape: str, adaptation: Adaptation, precision: dict[str, Any] | None = None
) -> tuple[Any, FragmentStore]:
    """A backend after two steps, and its checkpoint."""
    learner = learner_of(folder, shape, adaptation)
    held = Plain(config=CONFIG | (precision or {})).build(learner, AdamW(lr=3e-2), [])
    batches = (tiny.step_batches(learner.objective, step, 0, 1, 1) for step in range(2))
    run = Run(held, batches, Constant(), lr=3e-2, steps=2, seed=1)
    for step in range(2):
        train_step(run, step)
    return held, FragmentStore(save(folder / "checkpoints", Progress(2), held, {}, "recipe"))


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.tokenizer_folder(folder / "tokenizer"))


def export(folder: Path, store: FragmentStore, learner: Any, adaptation: Adaptation) -> Any:
    words = tokenizer(folder)
    return export_model(store, learner, adaptation, words, folder / "export", LINEAGE, PROBE)


def load(folder: Path, auto_class: str) -> Any:
    import transformers

    return getattr(transformers, auto_class).from_pretrained(folder)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(PROBE)).logits


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft, of GPT-2's Conv1D
@pytest.mark.parametrize("adaptation", [FullTraining(), LowRank(rank=2)], ids=["full", "lora"])
def test_transformers_alone_loads_what_was_trained(
    tmp_path: Path, shape: str, adaptation: Any
) -> None:
    held, store = trained(tmp_path, shape, adaptation.build(0))
    expected = logits(held.learner.backbone)
    fresh = adaptation.build(0)
    done = export(tmp_path, store, learner_of(tmp_path, shape, fresh), fresh)

    seen = done.verification
    loaded = load(done.folder, seen.auto_class)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(loaded), logits(tiny.learner(tmp_path, shape).backbone))
    assert not [name for name in loaded.state_dict() if "extra" in name or "lora" in name]
    assert seen.loss == pytest.approx(seen.trained_loss, rel=1e-5)
    assert seen.parameters == sum(p.numel() for p in loaded.parameters())
    assert not export_problems(done.folder)
    assert [entry.name for entry in tmp_path.glob(".tmp-*")] == []


@pytest.mark.parametrize("shape", ["bert_tiny", "gpt2_tiny"])
def test_ties_survive(tmp_path: Path, shape: str) -> None:
    held, store = trained(tmp_path, shape, FullTraining())
    done = export(tmp_path, store, learner_of(tmp_path, shape, FullTraining()), FullTraining())
    loaded = load(done.folder, done.verification.auto_class)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert any(
        any("embed" in name or "wte" in name for name in names) for names in done.verification.ties
    )
    # The weights moved: a tie that was filled from the input model would show.
    moved = held.learner.backbone.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, moved)


def test_full_precision_weights_are_exported_after_bf16_training(tmp_path: Path) -> None:
    held, store = trained(tmp_path, "bert_tiny", FullTraining(), {"bf16": {"enabled": True}})
    fresh = learner_of(tmp_path, "bert_tiny", FullTraining())
    done = export(tmp_path, store, fresh, FullTraining())
    loaded = load(done.folder, done.verification.auto_class)
    masters = {f.name: f.tensor for f in held.fragments() if f.key == "fp32"}
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.detach().view(-1), masters[f"backbone.{name}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained BERT's checkpoint and its export."""
    folder = tmp_path_factory.mktemp("finished")
    _, store = trained(folder, "bert_tiny", FullTraining())
    export(folder, store, learner_of(folder, "bert_tiny", FullTraining()), FullTraining())
    return folder


def again(finished: Path, learner: Any, adaptation: Any = None, **changes: Any) -> Any:
    given = {
        "store": FragmentStore(finished / "checkpoints" / "step-2"),
        "learner": learner,
        "adaptation": adaptation or FullTraining(),
        "tokenizer": tokenizer(finished),
        "folder": finished / "export",
        "lineage": LINEAGE,
        "probe": PROBE,
    }
    return export_model(**(given | changes))


def bert(folder: Path, adaptation: Adaptation | None = None, **changes: Any) -> Any:
    return learner_of(folder, "bert_tiny", adaptation or FullTraining(), **changes)


def test_the_card_tells_where_it_comes_from(finished: Path) -> None:
    card = read_card(finished / "export")
    assert card["lineage"] == LINEAGE
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(card["files"])
    facts = json.loads(json.dumps(describe(finished / "export")))
    assert (facts["kind"], facts["intact"], facts["lineage"]) == ("export", True, LINEAGE)
    assert facts["verification"]["auto_class"] == "AutoModelForMaskedLM"


def test_the_same_again_replaces_it_with_the_same(finished: Path) -> None:
    before = read_card(finished / "export")["fingerprint"]
    assert again(finished, bert(finished)).fingerprint == before


def test_damage_to_an_export_is_named(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(finished / "export", tmp_path / "copy")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    (copy / "config.json").unlink()
    problems = export_problems(copy)
    assert [problem.split(": ")[0] for problem in problems] == [
        str(copy / "config.json"),
        str(copy / "model.safetensors"),
    ]
    (copy / CARD).write_text("{")
    assert describe(copy)["intact"] is False


def test_only_its_own_leftovers_are_cleared(finished: Path) -> None:
    mine, other = finished / ".tmp-export-0123abcd", finished / ".tmp-exports-0123abcd"
    mine.mkdir()
    other.mkdir()
    again(finished, bert(finished))
    assert not mine.exists()
    assert other.exists()
    other.rmdir()


def test_a_foreign_folder_is_not_overwritten(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("months of work")
    with pytest.raises(CheckpointError, match="choose an empty folder"):
        again(finished, bert(finished), folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a folder"):
        again(finished, bert(finished), folder=tmp_path / "file")
    assert (tmp_path / "thesis.txt").read_text() == "months of work"


@pytest.mark.parametrize("probe", [[], [[tiny.VOCABULARY]], [[-1]], [[[5]]]])
def test_a_probe_that_proves_nothing_is_refused(finished: Path, probe: Any) -> None:
    with pytest.raises(DataError, match="the probe must be token ids"):
        again(finished, bert(finished), probe=probe)


def test_another_model_is_refused(finished: Path) -> None:
    for change, message in (
        ({"hidden_size": 32}, "is \\(64, 64\\)|the model's is"),
        ({"num_hidden_layers": 1}, "which the model has not"),
        ({"num_hidden_layers": 3}, "no weights of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            again(finished, bert(finished, **change))


def test_a_learner_in_low_precision_is_refused(finished: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is torch\.bfloat16 on cpu"):
        again(finished, bert(finished).to(torch.bfloat16))


class WrongMerge:
    """Changes a weight on the way."""

    def apply(self, backbone: nn.Module) -> nn.Module:
        return backbone

    def merge(self, backbone: nn.Module) -> nn.Module:
        with torch.no_grad():
            next(backbone.parameters()).add_(0.1)
        return backbone

    def files(self, backbone: nn.Module) -> dict[str, bytes]:
        return {}


def test_a_merge_that_changes_the_model_leaves_the_old_export(finished: Path) -> None:
    before = read_card(finished / "export")["fingerprint"]
    with pytest.raises(CheckpointError, match="logits differ from the trained one's"):
        again(finished, bert(finished), WrongMerge())
    assert read_card(finished / "export")["fingerprint"] == before
    assert not export_problems(finished / "export")
    assert not list(finished.glob(".tmp-*"))


@pytest.mark.parametrize(("loaded", "learned"), [(2.001, 2.0), (float("nan"), 2.0), (None, 2.0)])
def test_another_loss_is_refused(loaded: float | None, learned: float | None) -> None:
    _compare_losses(2.00001, 2.0)
    _compare_losses(None, None)
    with pytest.raises(CheckpointError, match="loss on the probe is"):
        _compare_losses(loaded, learned)


def test_a_tokenizer_that_splits_otherwise_is_refused(finished: Path) -> None:
    from tokenizers.normalizers import Lowercase

    words = tokenizer(finished)
    save_as_it_was = words.save_pretrained
    words.save_pretrained = lambda folder: (
        save_as_it_was(folder),
        setattr(words.backend_tokenizer, "normalizer", Lowercase()),
    )
    with pytest.raises(CheckpointError, match="gives texts other ids"):
        again(finished, bert(finished), tokenizer=words)


def test_a_broken_tie_is_refused(finished: Path) -> None:
    learner = bert(finished)
    decoder = learner.backbone.get_output_embeddings()
    decoder.weight = nn.Parameter(decoder.weight.detach().clone(), requires_grad=False)
    with pytest.raises(CheckpointError, match="no longer does"):
        again(finished, learner)
