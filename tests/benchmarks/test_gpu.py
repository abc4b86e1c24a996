"""The GPU's table: its code on tiny models, and what it says where there is no GPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu.checks import _documents
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.speed import _tries
from benchmarks.gpu.trial import attention_flops, squared_lengths
from configs.devices import GIB, GPUS, Device
from configs.errors import RecipeError
from engine.choosing import fits
from engine.parameter_shapes import model_shape
from engine.protocols import Batch
from engine.rows import bounds_of
from tests.engine import tiny
from tests.warm import ROOT, WarmWorkers

ROWS = ["bert_base", "llama_8b", "isolation", "attention", "resume"]


@pytest.mark.grid
@pytest.mark.processes
def test_models_train_and_checks_pass_on_a_cpu(tmp_path, warm: WarmWorkers):
    answer = tmp_path / "answer.json"
    arguments = {"answer": str(answer), "only": ROWS}
    ended = warm.run("tests.benchmarks.gpu_rows:main", arguments, world=1, timeout=300)
    assert [each.code for each in ended] == [0], ended[0].text[-3000:]
    rows = {row["name"]: row for row in json.loads(answer.read_bytes())}
    assert list(rows) == [
        "bert_base",
        "llama_8b",
        *(f"{name} {kind}" for name in ROWS[2:] for kind in ("mlm", "clm")),
    ]
    for name in ROWS[:2]:
        row = rows.pop(name)
        assert row["tokens_per_s"] > 0
        assert row["mfu_measured"] > 0
        assert row["as_planned"]
        assert row["last_loss"] < row["first_loss"]
    assert all(row["passed"] for row in rows.values()), rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "needs a CUDA GPU" in done.stderr
    row = gpu.measure()
    assert (row["id"], row["value"], row["reached"]) == ("G", None, False)


def test_an_unknown_row_is_refused():
    with pytest.raises(RecipeError, match=r"--only bert_bas: .*bert_base"):
        gpu.measure_rows(["bert_bas"], "cpu", tiny=True)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu, "_NEEDED", ("torch", "not_here_1", "not_here_2"))
    with pytest.raises(gpu.ResourceError, match="no not_here_1, not_here_2 here"):
        gpu.measure_rows([], "cpu", tiny=True)


def test_the_models_have_the_published_sizes():
    kinds = {"mlm": "masked_lm", "clm": "causal_lm"}
    sizes = {
        model.name: model_shape(model.shape, kinds[model.objective], model.vocabulary).parameters
        for model in MODELS
    }
    # The published 8,030,261,248 of Llama 3 8B; BERT's without its pooler.
    assert sizes["llama_8b"] == 8_030_261_248
    assert sizes["bert_base"] == pytest.approx(109.5e6, rel=0.01)
    assert sizes["bert_large"] == pytest.approx(335e6, rel=0.01)
    assert sizes["gpt_1.3b"] == pytest.approx(1.3e9, rel=0.02)


def test_every_model_is_tried_with_what_the_planner_lets_fit(tmp_path):
    h200 = Device("cuda", "an H200", GPUS["h200"].memory, host=1000 * GIB)
    first = {}
    for model in MODELS:
        tries = list(_tries(model, tmp_path, h200))
        assert all(fits(each.option.memory, h200) for each in tries)
        on_host = [each.on_host for each in tries]
        assert on_host == sorted(on_host)
        first[model.name] = tries[0]
    assert (first["bert_base"].rows, first["bert_base"].every) == (128, None)
    assert first["gpt_1.3b"].on_host == 0


def test_a_failed_row_keeps_the_target_from_being_reached(monkeypatch):
    fast = [
        {"name": model.name, "tokens_per_s": 2 * model.goal, "goal": model.goal} for model in MODELS
    ]
    for passed in (True, False):
        rows = [*fast, {"name": "isolation mlm", "passed": passed}]
        monkeypatch.setattr(gpu, "measure_rows", lambda rows=rows: rows)
        monkeypatch.setattr(gpu, "facts", lambda device: {"device": device, "driver": "1.2"})
        found = gpu.measure()
        assert (found["value"], found["reached"]) == (2.0, passed)
        assert found["details"][0] == {"name": "machine", "device": "cuda", "driver": "1.2"}


@pytest.mark.parametrize(
    ("name", "sheet"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA RTX A6000", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_data_sheet_is_of_exactly_that_model(name: str, sheet: str | None):
    assert gpu._sheet(name) == (GPUS[sheet].speeds if sheet else None)


def test_attention_is_counted_within_documents():
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    bounds = torch.from_numpy(bounds_of(segments.numpy()))
    batch = Batch({"segments": segments, "bounds": bounds}, 0, 0, (0,), (0,))
    squares = squared_lengths([batch, batch])
    assert squares == 2 * (9 + 4 + 36)
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=8)
    assert attention_flops(config, "masked_lm", squares) == 12 * 2 * 8 * squares
    assert attention_flops(config, "causal_lm", squares) == 6 * 2 * 8 * squares


def test_documents_are_taken_apart_and_lose_no_target(tmp_path):
    rows = tiny.step_batches(tiny.objective("bert_tiny"), 0, 0, 1, 1)[0]
    alone = list(_documents(rows))
    assert sum(len(each.tensors["at"]) for each in alone) == rows.count
    for each in alone:
        tensors = each.tensors
        assert set(tensors["segments"].unique().tolist()) <= {0, 1}
        assert tensors["segments"][0, tensors["at"]].all()
