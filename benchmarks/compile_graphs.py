"""P13: torch.compile through DeepSpeed at stages 0 to 2: graph breaks and graphs, counted."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import ranks, training_stage

if TYPE_CHECKING:
    from engine.protocols import Backend, Batch

MOST, STEPS, ROWS, LENGTH, VOCABULARY = 2, 6, 4, 32, 512
SHAPE = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
COMPILERS = {0: ("aot_eager",), 1: ("aot_eager", "inductor"), 2: ("aot_eager",)}
"""By stage: graphs are traced and split alike by both; ``aot_eager`` runs torch's own kernels."""


def measure() -> dict[str, Any]:
    """Six training steps and an evaluation of six batches, every one with other targets.

    The learner is compiled as a recipe's ``compile`` does it and trained through DeepSpeed. What is
    counted: graphs, graph breaks, and compilations of a graph that was there already.
    ``loss_difference``: to the same steps not compiled, at most, relative.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        training_stage.write(folder, VOCABULARY, training_stage.abstracts(0, 200))
        with ranks.ready(folder) as call:
            details = [
                _case(call, folder, stage, compiler)
                for stage, compilers in COMPILERS.items()
                for compiler in compilers
            ]
    value = max(line["graph_breaks"] for line in details)
    most = max(line["graphs"] for line in details)
    return {
        "id": "P13",
        "value": f"{value} graph breaks, {most} graphs",
        "target": f"0 graph breaks, {MOST} graphs",
        "reached": value == 0 and most <= MOST,
        "details": details,
    }


def _case(call: ranks.Call, folder: Path, stage: int, compiler: str) -> dict[str, Any]:
    answer = folder / f"{stage}-{compiler}.json"
    arguments = {"place": str(folder), "stage": stage, "compiler": compiler, "answer": str(answer)}
    found: dict[str, Any] = ranks.answered(call, "benchmarks.compile_graphs:on_rank", arguments)
    return found


def on_rank(place: str, stage: int, compiler: str, answer: str) -> None:
    """One stage by one compiler."""
    import torch
    from torch._dynamo.utils import counters

    from engine import distributed

    whole = torch.compile
    if compiler != "inductor":

        def traced(function: Any, **settings: Any) -> Any:
            settings.pop("options")
            return whole(function, backend=compiler, **settings)

        torch.compile = traced
    with distributed.joined():
        eager = _losses(Path(place), stage, is_compiled=False)
        counters.clear()
        compiled = _losses(Path(place), stage, is_compiled=True)
    apart = max(abs(a - b) / abs(b) for a, b in zip(compiled, eager, strict=True))
    told = {
        "stage": stage,
        "compiler": compiler,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompilations": sum(counters["recompiles"].values()),
        "loss_difference": float(f"{apart:.1e}"),
    }
    Path(answer).write_text(json.dumps(told), encoding="utf-8")


def _losses(place: Path, stage: int, *, is_compiled: bool) -> list[float]:
    import torch

    from engine.assemble import assemble

    config = training_stage.deepspeed_json(ROWS, stage)
    # Numbers are compared, which bf16 would blur.
    config["bf16"] = {"enabled": False}
    asked = training_stage.stage(
        place,
        SHAPE | training_stage.QUIET,
        LENGTH,
        config,
        **({"compile": {}} if is_compiled else {}),
    )
    parts = assemble(asked, training_stage.context(place / f"run-{stage}-{is_compiled}"))
    losses = []
    for step in range(STEPS):
        [batch] = parts.make(step)
        torch.manual_seed(step)
        losses += [_step(parts.backend, batch), float(parts.backend.evaluate(batch).total)]
    parts.backend.close()
    return losses


def _step(backend: "Backend", batch: "Batch") -> float:
    import torch

    loss = backend.forward(batch)
    backend.backward(loss, torch.tensor(float(batch.count)))
    backend.step(1e-4)
    return float(loss.total.detach())
