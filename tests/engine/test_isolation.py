"""Documents of one row do not see one another, in any architecture; windows are kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.errors import RecipeError
from engine import isolation
from engine.isolation import (
    allow_alone,
    attention_mask,
    check_isolation,
    first_position,
    isolated_inputs,
    longest_document,
)
from engine.learner import Learner
from engine.models import RandomModel
from tests.engine import tiny


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_changing_one_document_leaves_the_others_as_they_were(tmp_path, shape):
    model = tiny.learner(tmp_path, shape).backbone.eval()
    rows = tiny.objective(shape).collate([tiny.example(1, lengths=(8, 8, 8))], 5, 1).tensors
    changed = dict(rows) | {"tokens": rows["tokens"].clone()}
    changed["tokens"][0, 8:16] = (rows["tokens"][0, 8:16] + 11) % tiny.VOCABULARY
    with torch.no_grad():
        before = model(**isolated_inputs(model, rows)).logits[0]
        after = model(**isolated_inputs(model, changed)).logits[0]
    # An expert multiplies the tokens of all documents at once: how many, shows in the last bit.
    exact = {"rtol": 0, "atol": 1e-6 if shape == "mixtral_tiny" else 0}
    torch.testing.assert_close(before[:8], after[:8], **exact)
    torch.testing.assert_close(before[16:], after[16:], **exact)
    assert not torch.allclose(before[8:16], after[8:16])


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_document_in_a_pack_is_the_document_alone(tmp_path, shape):
    model = tiny.learner(tmp_path, shape).backbone.eval()
    rows = tiny.objective(shape).collate([tiny.example(1, lengths=(9, 7))], 5, 1).tensors
    tokens = rows["tokens"][:, 9:16]
    with torch.no_grad():
        packed = model(**isolated_inputs(model, rows)).logits[:, 9:16]
        alone = model(input_ids=tokens).logits
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_modernbert_keeps_its_window_in_long_documents(tmp_path):
    model = tiny.learner(tmp_path, "modernbert_tiny", local_attention=8).backbone.eval()
    tokens = torch.arange(5, 29)[None]
    rows = {
        "tokens": tokens,
        "segments": torch.ones_like(tokens),
        "positions": torch.arange(24)[None],
    }
    with torch.no_grad():
        ours = model(**isolated_inputs(model, rows)).logits
        theirs = model(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    masks = attention_mask(model.config, rows["segments"])
    assert masks["full_attention"].all()
    assert masks["sliding_attention"].sum() < masks["full_attention"].sum()


def test_a_causal_window_without_kinds_of_layers_is_kept():
    config = SimpleNamespace(model_type="mistral", sliding_window=2)
    mask = attention_mask(config, torch.ones(1, 4, dtype=torch.long))
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_no_row_of_the_mask_is_empty():
    mask = attention_mask(SimpleNamespace(model_type="bert"), torch.tensor([[1, 1, 2, 0, 0]]))
    assert mask.any(-1).all()
    assert mask.dtype is torch.bool


def test_unknown_kinds_of_layers_are_refused():
    config = SimpleNamespace(model_type="llama4", layer_types=["chunked_attention"])
    with pytest.raises(RecipeError, match="chunked_attention"):
        attention_mask(config, torch.ones(1, 4, dtype=torch.long))


def test_first_and_last_positions(tmp_path):
    expected = {"bert_tiny": (0, 512), "roberta_tiny": (1, 513), "gpt2_tiny": (0, 1024)}
    for shape, (first, longest) in expected.items():
        model = tiny.learner(tmp_path, shape).backbone
        assert first_position(model) == first
        assert longest_document(model) == longest


class Leaky(nn.Module):
    """Averages over the whole row, whatever the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="leaky", vocab_size=64)
        self.embedding = nn.Embedding(64, 4)

    def forward(self, input_ids: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        hidden = self.embedding(input_ids)
        return (hidden + hidden.cumsum(1).flip(1),)


def test_an_architecture_that_leaks_is_refused():
    with pytest.raises(RecipeError, match="leaky: documents packed into one row see each other"):
        check_isolation(Leaky())


def test_a_row_of_one_document_is_for_every_architecture(monkeypatch):
    monkeypatch.setattr(isolation, "_alone", set())
    model = Leaky()
    allow_alone(model)
    rows = {
        "tokens": torch.tensor([[8, 9, 10, 0]]),
        "segments": torch.tensor([[1, 1, 1, 0]]),
        "positions": torch.tensor([[0, 1, 2, 0]]),
    }
    inputs = isolated_inputs(model, rows)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert "position_ids" not in inputs
    with pytest.raises(RecipeError, match=r"packing: \{name: single\}"):
        check_isolation(model)


def test_a_model_without_sdpa_trains_on_rows_of_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "_alone", set())
    shape = {
        "model_type": "deberta-v2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    tokenizer = tiny.tokenizer_folder(tmp_path / "tokenizer")
    config = RandomModel(shape=shape, tokenizer=str(tokenizer))
    with pytest.raises(RecipeError, match="sdpa"):
        config.build(Path, "masked_lm", seed=3)
    model = config.build(Path, "masked_lm", seed=3, shared_rows=False).model.eval()
    goal = tiny.objective("bert_tiny")
    short, long = (goal.collate([tiny.example(1, lengths=(size,))], 5, 1) for size in (9, 9))
    long.tensors["tokens"][:, 12:] = 7
    losses = [Learner(model, goal)(batch.tensors)[0] for batch in (short, long)]
    torch.testing.assert_close(*losses)


def test_a_known_architecture_keeps_its_mask_in_rows_of_one_document(tmp_path):
    model = tiny.learner(tmp_path, "bert_tiny").backbone
    allow_alone(model)
    rows = {
        name: torch.ones(1, 4, dtype=torch.long) for name in ("tokens", "segments", "positions")
    }
    assert isolated_inputs(model, rows)["attention_mask"].ndim == 4
