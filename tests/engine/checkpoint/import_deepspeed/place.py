"""A tiny GPT-2, its data in rows of one document each, and stages that read both."""

from pathlib import Path
from typing import Any

import numpy as np

from configs.stage import StageContext
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from engine.pretraining import PretrainStage
from tests.engine import tiny
from tests.engine.checkpoint.import_deepspeed import foreign

STEPS = foreign.SAVED_AT + foreign.MORE
LENGTH = 24
# Odd sizes: partitions must be padded on two ranks.
SHAPE = {"n_embd": 33, "n_head": 3, "n_layer": 2, "n_positions": 32}


def make(folder: Path) -> Path:
    """Tokenizer, shards and model in ``folder``."""
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    record = tokenizer_record(tokenizer)
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    number = foreign.ROWS * STEPS
    rng = np.random.default_rng(0)
    lengths = np.full(number, LENGTH - 2, np.int32)
    tokens = rng.zipf(1.3, int(lengths.sum())) % (tiny.VOCABULARY - 5) + 5
    with ShardWriter(folder / "shards", record, 10_000) as writer:
        writer.write(tokens, lengths, np.zeros(len(tokens), np.uint8))
        writer.finish({})
    learner: Any = tiny.learner(folder / "tiny", "gpt2_tiny", **SHAPE)
    learner.backbone.save_pretrained(folder / "model")
    return folder


def stage(folder: Path, **changes: Any) -> PretrainStage:
    """Causal language modelling on the rows, at a constant rate, in fp32 on one process."""
    values = {
        "kind": "pretrain",
        "model": {
            "name": "pretrained",
            "location": str(folder / "model"),
            "tokenizer": str(folder / "tokenizer"),
        },
        "data": {"length": LENGTH, "sources": {"only": {"shards": str(folder / "shards")}}},
        "objective": {"name": "clm"},
        "optimizer": {"name": "adamw", "lr": foreign.LR},
        "schedule": {"name": "constant"},
        "steps": STEPS,
        "backend": {
            "name": "plain",
            "config": {"train_batch_size": foreign.ROWS, "gradient_clipping": 1.0},
        },
        "checkpoint": {"every": 100},
        "log_every": 1,
    }
    return PretrainStage.model_validate(values | changes)


def context(folder: Path) -> StageContext:
    """A stage folder of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("dapt", folder, 1, "key", {})


def write_rows(folder: Path) -> Path:
    """The tokens of every row that the stage reads, in its order, as a .npy file."""
    stream = stage(folder).open_stream(context(folder / "unused"))
    rows = stream.examples(0, foreign.ROWS * STEPS).tokens.astype(np.int64)
    np.save(folder / "rows.npy", rows)
    return folder / "rows.npy"
