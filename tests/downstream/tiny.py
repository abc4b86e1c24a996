"""A tiny separable task, tokenizer, models and shards for the downstream tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.stage import Artifact, StageContext
from data_pipeline.example import WORD_START
from downstream.records import write_jsonl

CLASSES = ("alpha", "beta", "gamma")
WORDS = 48
ROWS = {"train": 96, "dev": 36, "test": 45}


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose class is told by one word in three; groups of three rows."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        label = index % len(CLASSES)
        length = int(rng.integers(3, 30))
        own = rng.integers(label * 8, label * 8 + 8, length)
        words = np.where(rng.random(length) < 1 / 3, own, rng.integers(24, WORDS, length))
        words[0] = own[0]
        text = " ".join(f"w{word}" for word in words)
        group = f"side{seed}/file{index // 3}"
        made.append(
            {"id": f"{seed}:{index}", "group": group, "text": text, "label": CLASSES[label]}
        )
    return made


def task_config(folder: Path) -> dict[str, Any]:
    """Three files of rows, and the jsonl task over them."""
    for seed, (side, count) in enumerate(ROWS.items()):
        write_jsonl(folder / f"{side}.jsonl", rows(count, seed))
    return {"name": "jsonl", "group": "group"} | {s: str(folder / f"{s}.jsonl") for s in ROWS}


def task_folder(folder: Path) -> Path:
    """What a task stage leaves."""
    from downstream.tasks import TaskStage

    stage = TaskStage.model_validate({"kind": "task", "task": task_config(folder / "raw")})
    stage.run(context("rows", folder / "rows"))
    return folder / "rows"


def tokenizer_folder(folder: Path, words: int = WORDS) -> Path:
    """One token a word, with CLS and SEP around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    names = [*special, *(f"w{index}" for index in range(words))]
    backend = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    roles = {f"{name[1:-1].lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return folder


def model_folder(
    folder: Path, seed: int = 0, words: int = WORDS, shape: str = "bert_tiny", **changes: Any
) -> Path:
    """A random model with its tokenizer, as an export looks; no dropout."""
    from engine.models import RandomModel, read_shape
    from tests.engine.tiny import dropouts

    tokenizer = tokenizer_folder(folder.with_name(f"{folder.name}-tokenizer"), words)
    values = read_shape(shape) | dict.fromkeys(dropouts(shape), 0.0) | changes
    architecture = "causal_lm" if shape.startswith(("gpt2", "llama")) else "masked_lm"
    config = RandomModel(shape=values, tokenizer=str(tokenizer))
    built = config.build(Path, architecture, seed)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    return folder


def shard_folder(
    folder: Path, tokenizer: Path, seed: int, words: tuple[int, int] = (0, WORDS)
) -> Path:
    """Held-out text: 40 documents of the words of a range."""
    from data_pipeline.shards import ShardWriter
    from data_pipeline.tokenization import tokenizer_record

    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 40, 40).astype(np.int32)
    tokens = rng.integers(5 + words[0], 5 + words[1], lengths.sum())
    with ShardWriter(folder, tokenizer_record(tokenizer)) as writer:
        writer.write(tokens, lengths, np.full(len(tokens), WORD_START, np.uint8))
        writer.finish({})
    return folder


def context(name: str, folder: Path, **inputs: Path) -> StageContext:
    """A stage's surroundings, its inputs given as folders."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {key: Artifact(path, "0" * 64) for key, path in inputs.items()}
    return StageContext(name, folder, 1, f"key of {name}", made)


def finetune_config(arms: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Settings under which the tiny models learn the tiny task."""
    return {
        "kind": "finetune",
        "task": "stage:rows",
        "arms": arms,
        "seeds": [1, 2],
        "length": 24,
        "head": {"name": "linear", "dropout": 0.0},
        "epochs": 4,
        "optimizer": {"name": "adamw", "lr": 5e-3},
        "schedule": {"name": "linear", "warmup": 0.1},
        "backend": {"name": "plain", "config": {"train_batch_size": 8}},
    } | changes


def read(path: Path) -> Any:
    return json.loads(path.read_text())
