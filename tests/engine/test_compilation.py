"""A compiled learner: two graphs whatever the batches' sizes, eager's numbers, an exact resume."""

import os
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

# Documents of each row of a micro-batch: every step predicts another number of tokens.
SIZES = (
    ((9, 7), (24,), (5,), (8, 8, 8)),
    ((24,), (3, 3), (4,), (5,)),
    ((24,), (24,), (24,), (20,)),
    ((3,), (4,), (5,), (6,)),
    ((12, 12), (8, 8), (24,), (7,)),
    ((10,), (9,), (8,), (7,)),
)


def batch(of: Learner, step: int, lengths: Any) -> dict[str, torch.Tensor]:
    """The tensors of one micro-batch, a row for each entry of ``lengths``."""
    rows = [tiny.example(10 * step + n, n % 2, some) for n, some in enumerate(lengths)]
    return dict(of.objective.collate(rows, 5, 2).tensors)


@pytest.fixture(autouse=True)
def deterministic_here_alone():
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


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


@pytest.mark.grid
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
    learner.eval()
    plain.eval()
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


def drive(folder: Path, first: int, *, compiled: bool = True) -> dict[str, Any]:
    """Losses from ``first`` on and the weights at the end; those of half-way are kept on disk."""
    learner = tiny.learner(folder, "gpt2_tiny", n_layer=1)
    if first:
        learner.load_state_dict(torch.load(folder / "saved.pt"))
    if compiled:
        Compilation().apply(learner)
    losses = []
    for step in range(first, len(SIZES)):
        if step == len(SIZES) // 2 and not first and compiled:
            torch.save(learner.state_dict(), folder / "saved.pt")
        total, *_ = learner(batch(learner, step, SIZES[step]))
        total.backward()
        losses.append(total.detach())
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.sub_(parameter.grad, alpha=1e-3)
        learner.zero_grad()
    return {"losses": torch.stack(losses), "weights": learner.state_dict()}


@pytest.fixture
def forgetful(monkeypatch, tmp_path):
    """Every compilation begins from nothing, as in a new process; libraries are kept by content."""
    kept = Path(os.environ.get("ONWARD_CACHE", tmp_path)) / "inductor"
    monkeypatch.setenv(compilation._FOLDER, str(kept))
    with (
        torch._inductor.config.patch({"fx_graph_cache": False, "cpp.vec_isa_ok": True}),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        torch._dynamo.reset()
        counters.clear()
        yield
        torch._dynamo.reset()


@pytest.mark.grid
@pytest.mark.usefixtures("forgetful")
def test_a_resumed_run_computes_the_same_bits(tmp_path):
    """6 steps, and the last 3 again, compiled anew from a batch of another size."""
    whole = drive(tmp_path, 0)
    torch._dynamo.reset()
    resumed = drive(tmp_path, len(SIZES) // 2)
    assert counters["stats"]["unique_graphs"] == 2
    assert torch.equal(resumed["losses"], whole["losses"][len(SIZES) // 2 :])
    for name, weight in resumed["weights"].items():
        assert torch.equal(weight, whole["weights"][name]), name
    eager = drive(tmp_path, 0, compiled=False)
    torch.testing.assert_close(whole["losses"], eager["losses"], rtol=1e-5, atol=1e-5)
