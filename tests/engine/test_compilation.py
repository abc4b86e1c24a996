"""A compiled learner: two graphs whatever the batches' sizes, eager's numbers, an exact resume."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from configs.errors import RecipeError, ResourceError
from engine import compilation
from engine.activation_checkpointing import ActivationCheckpointing
from engine.compilation import Compilation
from engine.learner import Learner
from tests.engine import tiny
from tests.engine.compiled_worker import SIZES, batch, drive

EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture
def traced(monkeypatch):
    """Graphs are traced and split as ever, but run by torch's own kernels: nothing is compiled."""
    compile_by = torch.compile

    def by_hand(function: Any, **settings: Any) -> Any:
        settings.pop("options")
        return compile_by(function, backend="aot_eager", **settings)

    monkeypatch.setattr(torch, "compile", by_hand)
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def made(folder: Path, shape: str, *, recomputed: bool = False) -> tuple[Learner, Learner]:
    """A learner of one layer that runs compiled, and the same one as it is."""
    size = {"n_layer" if shape.startswith("gpt2") else "num_hidden_layers": 1}
    rates = dict.fromkeys(tiny.dropouts(shape), 0.1)
    pair = [tiny.learner(folder, shape, **size, **rates) for _ in range(2)]
    if recomputed:
        ActivationCheckpointing().apply(pair[0].backbone)
    Compilation().apply(pair[0])
    return pair[0], pair[1]


@pytest.mark.parametrize(("shape", "recomputed"), [("bert_tiny", False), ("gpt2_tiny", True)])
def test_two_graphs_whatever_the_batches_and_what_they_compute(tmp_path, traced, shape, recomputed):
    learner, plain = made(tmp_path, shape, recomputed=recomputed)
    for step, lengths in enumerate(SIZES):
        tensors = batch(learner, step, lengths)
        losses = []
        for module in (learner, plain):
            torch.manual_seed(step)
            losses.append(module(tensors)[0])
            losses[-1].backward()
        torch.testing.assert_close(*losses)
    for found, expected in zip(learner.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    learner.eval(), plain.eval()
    with torch.no_grad():
        for step, lengths in enumerate(SIZES):
            tensors = batch(learner, step, lengths[: 4 - step % 3])
            torch.testing.assert_close(learner(tensors)[0], plain(tensors)[0])
    assert traced["stats"]["unique_graphs"] == 2
    assert not traced["graph_break"]


def test_a_model_that_breaks_the_graph_is_refused(tmp_path, traced):
    learner, _ = made(tmp_path, "bert_tiny")

    def forward(input_ids: torch.Tensor, **_: object) -> Any:
        torch._dynamo.graph_break()

    learner.backbone.base_model.forward = forward
    with pytest.raises(RecipeError, match="cannot be compiled as one graph"):
        learner(batch(learner, 0, SIZES[0]))


def test_stage_3_is_refused():
    for stage in (0, 1, 2):
        Compilation().check(stage)
    with pytest.raises(RecipeError, match="ZeRO stage 3 gathers weights"):
        Compilation().check(3)


def test_a_missing_compiler_is_told(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler here"):
        made(tmp_path, "bert_tiny")


def test_what_is_compiled_lies_in_a_folder_of_the_process(monkeypatch):
    monkeypatch.setenv(compilation._FOLDER, "")
    monkeypatch.delenv(compilation._FOLDER)
    compilation._own_folder()
    folder = Path(os.environ[compilation._FOLDER])
    assert folder.is_dir()
    monkeypatch.setenv(compilation._FOLDER, "/elsewhere")
    compilation._own_folder()
    assert os.environ[compilation._FOLDER] == "/elsewhere"
    folder.rmdir()


@pytest.mark.processes
def test_a_resumed_run_computes_the_same_bits(tmp_path):
    """Two processes, each compiling on its own: 6 steps, and 3 of them again from the third on."""
    kept = Path(os.environ.get("ONWARD_CACHE", tmp_path)) / "inductor"
    environment = os.environ | {
        # Libraries of the same code are the same; graphs are made anew by each process.
        compilation._FOLDER: str(kept),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.engine.compiled_worker", str(tmp_path)]
    for first in ("0", "3"):
        subprocess.run([*command, first], env=environment, check=True, timeout=300)
    whole, resumed = (torch.load(tmp_path / f"from-{first}.pt") for first in (0, 3))
    assert whole["graphs"] == resumed["graphs"] == 1
    torch.testing.assert_close(resumed["losses"], whole["losses"][3:], **EXACT)
    for name, weight in resumed["weights"].items():
        assert torch.equal(weight, whole["weights"][name]), name
    eager = drive(tmp_path, 0, compiled=False)
    torch.testing.assert_close(whole["losses"], eager["losses"], rtol=1e-5, atol=1e-5)
