"""P5: the vocabulary head at masked positions against the full one: equal, and how much faster."""

import copy
import tempfile
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from benchmarks import training_stage

SHAPE = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
}
VOCABULARY, LENGTH, ROWS, PAIRS = 16_384, 128, 8, 9
TARGET, DIFFERENCE = 1.8, 1e-6


def measure() -> dict[str, Any]:
    """CPU time of forward and backward with the full head over ours, A B B A; median of the pairs.

    The full head is transformers' own: ``BertForMaskedLM`` with labels, -100 where nothing is
    predicted. Both see the same weights, rows and isolation of documents. In fp32 the losses must
    agree to 1e-6, and each parameter's gradient to 1e-6 of the largest value in it.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        learner, batch = _learner(Path(place))
    details = [_kind(copy.deepcopy(learner).to(kind), batch) for kind in _kinds()]
    value = min(line["full_over_masked"] for line in details)
    equal = details[0]["loss_difference"] <= DIFFERENCE
    equal = equal and details[0]["gradient_difference"] <= DIFFERENCE
    return {
        "id": "P5",
        "value": value,
        "target": TARGET,
        "reached": value >= TARGET and equal,
        "details": details,
    }


def _kinds() -> tuple[Any, ...]:
    import torch

    return torch.float32, torch.bfloat16


def _learner(folder: Path) -> tuple[Any, Any]:
    from engine.assemble import build_learner

    training_stage.write(folder, VOCABULARY, training_stage.abstracts(0, 200))
    config = training_stage.deepspeed_json(ROWS, 0)
    stage = training_stage.stage(folder, SHAPE | training_stage.QUIET, LENGTH, config)
    objective = training_stage.objective(stage)
    learner, _, _ = build_learner(stage, training_stage.context(folder / "run"), objective)
    return learner, objective.collate(training_stage.stream(stage).examples(0, ROWS), 1, 1)


def _kind(learner: Any, batch: Any) -> dict[str, Any]:
    def masked() -> Any:
        return learner(batch.tensors)[0] / batch.count

    labels = _labels(batch)

    def full() -> Any:
        from engine.isolation import isolated_inputs

        inputs = isolated_inputs(learner.backbone, batch.tensors)
        return learner.backbone(**inputs, labels=labels).loss

    differences = _compare(learner, masked, full)
    seen: dict[str, list[float]] = {"full": [], "masked": []}
    for turn in range(PAIRS):
        order = [("full", full), ("masked", masked)]
        for name, score in order if turn % 2 else order[::-1]:
            seen[name].append(_once(learner, score))
    ratios = sorted(a / b for a, b in zip(seen["full"], seen["masked"], strict=True))
    return {
        "dtype": str(next(learner.parameters()).dtype).removeprefix("torch."),
        "vocabulary": VOCABULARY,
        "tokens": batch.tokens,
        "targets": batch.count,
        "full_ms": round(1000 * median(seen["full"]), 1),
        "masked_ms": round(1000 * median(seen["masked"]), 1),
        "full_over_masked": round(median(ratios), 2),
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        **differences,
    }


def _labels(batch: Any) -> Any:
    """As transformers wants them, [B, L]."""
    import torch

    tokens = batch.tensors["tokens"]
    flat = torch.full_like(tokens, -100).flatten()
    flat[batch.tensors["at"]] = batch.tensors["labels"]
    return flat.view_as(tokens)


def _compare(learner: Any, masked: Any, full: Any) -> dict[str, float]:
    """How far losses and gradients are apart; the first pass of each warms up, too."""
    losses, gradients = [], []
    for score in (masked, full):
        learner.zero_grad()
        loss = score()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad.float() for n, p in learner.named_parameters()})
    apart = max(
        float((ours - gradients[1][name]).abs().max() / gradients[1][name].abs().max())
        for name, ours in gradients[0].items()
        # A key's bias moves all scores of a query alike: its gradient is rounding alone.
        if not name.endswith("key.bias")
    )
    return {
        "loss_difference": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradient_difference": apart,
    }


def _once(learner: Any, score: Any) -> float:
    learner.zero_grad()
    began = process_time()
    score().backward()
    return process_time() - began
