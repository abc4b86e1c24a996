"""A real pretraining stage on made-up documents, for the benchmarks of the training loop."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from configs.stage import StageContext
    from engine.pretraining import PretrainStage

BERT_SHORT_HEAD = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
}
"""With a vocabulary of ``SHORT_HEAD`` the head is 22% of the matrices, as it is in BERT-base."""
SHORT_HEAD = 3328
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ABSTRACT_MEAN, ABSTRACT_SPREAD = 300, 110
"""Tokens of an abstract: a normal distribution, cut off at 40 and 510."""


def deepspeed_json(rows: int, stage: int, world: int = 1) -> dict[str, Any]:
    """One micro-batch of ``rows`` a rank and step; bf16, at stage 0 fp32.

    DeepSpeed's throughput timer is off: it would wait for the device at every step.
    """
    return {
        "train_batch_size": rows * world,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": stage > 0},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},
    }


def abstracts(seed: int, count: int) -> Any:
    """Lengths of ``count`` documents, int32, special tokens not included."""
    draw = np.random.default_rng(seed)
    lengths = draw.normal(ABSTRACT_MEAN, ABSTRACT_SPREAD, count)
    return np.clip(lengths, 40, 510).astype(np.int32)


def write(folder: Path, vocabulary: int, lengths: Any, seed: int = 0) -> None:
    """``folder/tokenizer`` of so many tokens, and ``folder/shards`` of random documents."""
    from data_pipeline.example import WORD_START
    from data_pipeline.shards import ShardWriter
    from data_pipeline.tokenization import tokenizer_record
    from tests.engine import tiny

    tokenizer = tiny.tokenizer_folder(folder / "tokenizer", vocabulary)
    ends = {"prefix": [tiny.SPECIAL["cls"]], "suffix": [tiny.SPECIAL["sep"]]}
    record = tokenizer_record(tokenizer).model_copy(update={"special": tiny.SPECIAL} | ends)
    total = int(lengths.sum())
    tokens = np.random.default_rng(seed).integers(len(tiny.SPECIAL), vocabulary, total)
    with ShardWriter(folder / "shards", record, 8_000_000) as writer:
        writer.write(tokens, lengths, np.full(total, WORD_START, np.uint8))
        writer.finish({})


def stage(
    folder: Path, shape: dict[str, Any], length: int, config: dict[str, Any], **changes: Any
) -> "PretrainStage":
    """Masked language modelling from random weights, as a recipe would have it."""
    from engine.pretraining import PretrainStage

    values: dict[str, Any] = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": shape, "tokenizer": str(folder / "tokenizer")},
        "data": data(folder, length),
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "schedule": {"name": "constant"},
        "steps": 1000,
        "backend": {"name": "deepspeed", "config": config},
        # Never due while a benchmark runs, and its last step does not come.
        "checkpoint": {"every": 1_000_000},
    }
    return PretrainStage.model_validate(values | changes)


def data(folder: Path, length: int, **changes: Any) -> dict[str, Any]:
    """The rows of what ``write`` wrote."""
    return {"length": length, "sources": {"only": {"shards": str(folder / "shards")}}} | changes


def context(folder: Path) -> "StageContext":
    """A place for the stage to run in."""
    from configs.stage import StageContext

    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("benchmark", folder, 1, "key", {})


def stream(asked: "PretrainStage") -> Any:
    """The stage's rows, in the order in which it would read them."""
    from data_pipeline.streaming import TokenStream

    return TokenStream.open(asked.data, Path, 1)


def objective(asked: "PretrainStage") -> Any:
    """The stage's objective over the vocabulary of its shards."""
    opened = stream(asked)
    return asked.objective.build(opened.special, opened.vocabulary_size)


def rows(
    folder: Path, shape: dict[str, Any], length: int, count: int, changes: dict[str, Any]
) -> list[Any]:
    """The first ``count`` examples, in memory; ``changes``: of the stage's data."""
    asked = stage(folder, shape, length, deepspeed_json(1, 1))
    values = asked.data.model_dump(exclude_unset=True) | changes
    opened = stream(asked.model_copy(update={"data": type(asked.data).model_validate(values)}))
    return list(opened.examples(0, count))
