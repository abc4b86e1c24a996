"""What is chosen by itself changes no training: the same losses, step by step."""

from typing import Any

import pytest
import torch

from engine.backends import Plain
from engine.kernels import choice
from engine.optimization import AdamW
from tests.engine import tiny


@pytest.mark.grid
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("shape", ["bert_tiny", "modernbert_tiny", "llama_tiny"])
def test_losses_stay_as_they_were(tmp_path, shape, precision, within):
    values: dict[str, Any] = {"train_batch_size": 8}
    if precision != "fp32":
        values[precision] = {"enabled": True}

    def losses(*, quick: bool) -> list[float]:
        learner = tiny.learner(tmp_path, shape)
        if quick:
            choice.quicken(learner.backbone, torch.device("cpu"), precision, tiny.LENGTH)
        backend = Plain(config=values).build(learner, AdamW(lr=2e-3))
        found = []
        batch = tiny.step_batches(learner.objective, 0, 0, 1, 1, rows=8)[0]
        for _ in range(12):
            loss = backend.forward(batch)
            backend.backward(loss, torch.tensor(float(batch.count)))
            backend.step(2e-3)
            found.append(loss.total.item() / batch.count)
        return found

    usual, quick = losses(quick=False), losses(quick=True)
    assert quick == pytest.approx(usual, rel=within)
    assert usual[-1] < usual[0]


def test_quick_layers_are_there_after_it(tmp_path):
    from engine.kernels import attention, dropout

    backbone = tiny.learner(tmp_path, "bert_tiny", hidden_dropout_prob=0.1).backbone
    choice.quicken(backbone, torch.device("cpu"), "fp32", tiny.LENGTH)
    assert backbone.config._attn_implementation == attention.NAME
    layers = [m for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert layers
    assert all(type(layer) is dropout.QuickDropout for layer in layers)
    backbone.save_pretrained(tmp_path / "saved")
    assert attention.NAME not in (tmp_path / "saved" / "config.json").read_text()
