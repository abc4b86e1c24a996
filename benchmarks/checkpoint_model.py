"""A model of about 30 million parameters on two ranks, for the benchmarks of checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "bert",
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 128,
}
"""29.9 million parameters: fp32 weights and two moments are 359 MB."""
LENGTH, ROWS = 16, 2
DEEPSPEED = {
    "train_batch_size": 2 * ROWS,
    "train_micro_batch_size_per_gpu": ROWS,
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 1_000_000_000,
}


@contextmanager
def backend() -> Iterator[Any]:
    """A DeepSpeed backend in a group of ranks, its optimizer's state made by a first step."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from engine import distributed
    from engine.backends.deepspeed_zero import DeepSpeedZero
    from engine.learner import Learner
    from engine.objectives import MaskedLanguageModelling
    from engine.optimization import AdamW

    special = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
    objective = MaskedLanguageModelling().build(special, SHAPE["vocab_size"])
    torch.manual_seed(0)
    values = dict(SHAPE)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    with distributed.joined():
        made = DeepSpeedZero(config=DEEPSPEED).build(Learner(model, objective), AdamW(lr=1e-4))
        step(made, objective)
        yield made, lambda: step(made, objective)


def step(backend: Any, objective: Any) -> None:
    """One optimizer step on made-up rows."""
    import numpy as np
    import torch

    from data_pipeline.example import Example, ExampleKey

    draw = np.random.default_rng(backend.rank)
    whole = np.zeros(LENGTH, np.int32)
    rows = [
        Example(
            tokens=draw.integers(4, SHAPE["vocab_size"], LENGTH).astype(np.int32),
            segments=whole + 1,
            positions=np.arange(LENGTH, dtype=np.int32),
            special=np.zeros(LENGTH, np.bool_),
            annotations=np.zeros(LENGTH, np.uint8),
            key=ExampleKey(0, 1, row, 0),
        )
        for row in range(ROWS)
    ]
    batch = objective.collate(rows, 1, 1)
    loss = backend.forward(batch)
    backend.backward(loss, torch.tensor(float(max(1, 2 * batch.count))))
    backend.step(1e-4)


def trials(function: str, arguments: dict[str, Any], folder: Path) -> None:
    """Call a function of this package on two ranks that have imported everything."""
    from benchmarks import ranks

    with ranks.ready(folder) as call:
        call(function, arguments, 2)
