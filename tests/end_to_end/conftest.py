"""A small chain on text that is made here: two domains, a task, and the recipe that joins them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SYLLABLES = ["ka", "lo", "mi", "ren", "tos", "va", "quel", "dri", "un", "pho", "zir", "be"]
LABELS = ["alpha", "beta", "gamma"]


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Words of two or three syllables."""
    return ["".join(rng.choice(SYLLABLES, rng.integers(2, 4))) for _ in range(count)]


def write_corpus(path: Path, seed: int, documents: int) -> None:
    """Documents of one domain: each leans on one of its topics' words."""
    rng = np.random.default_rng(seed)
    topics = [words(rng, 40) for _ in LABELS]
    with path.open("w") as file:
        for number in range(documents):
            topic = topics[number % len(topics)]
            text = " ".join(rng.choice(topic, rng.integers(5, 60))) + "."
            file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")


def write_task(folder: Path, seed: int) -> None:
    """Rows of the domain's three topics."""
    rng = np.random.default_rng(seed)
    topics = [words(rng, 40) for _ in LABELS]
    for split, rows in (("train", 48), ("dev", 24), ("test", 36)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(rows):
                label = number % len(LABELS)
                text = " ".join(rng.choice(topics[label], 12))
                row = {"id": f"{split}{number}", "text": text, "label": LABELS[label]}
                file.write(json.dumps(row) + "\n")


def zero(deepspeed: dict, stage: int) -> dict:
    """The same settings at another ZeRO stage."""
    return deepspeed | {"zero_optimization": {"stage": stage}}


def recipe(data: Path, output: Path) -> dict:
    """Every kind of stage, dropout on, two sources, all penalties, decisions, an adapter."""
    length = 48
    deepspeed = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1000000,
    }
    arms = {"base": "stage:base/export", "dapt": "stage:dapt/export"}
    sets = {
        "general": "stage:prepare/corpora/general/held_out",
        "domain": "stage:prepare/corpora/domain/held_out",
    }
    objective = {"name": "mlm", "masking": {"name": "whole_word", "rate": 0.15}}
    training = {
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.1},
        "backend": {"name": "deepspeed", "config": deepspeed},
        "checkpoint": {"every": 20, "keep": 2},
        "log_every": 1,
        "objective": objective,
    }
    return {
        "name": "small",
        "output": str(output),
        "seed": 5,
        "stages": {
            "rows": {
                "kind": "task",
                "task": {"name": "jsonl"}
                | {split: str(data / f"{split}.jsonl") for split in ("train", "dev", "test")},
            },
            "prepare": {
                "kind": "prepare",
                "processes": 2,
                "tokenizer": {"name": "wordpiece", "vocabulary_size": 300, "corpora": ["general"]},
                "corpora": {
                    name: {
                        "sources": [{"name": "jsonl", "path": str(data / f"{name}.jsonl")}],
                        "split": {"held_out": 0.1},
                    }
                    for name in ("general", "domain")
                },
            },
            "gap": {
                "kind": "gap",
                "tokenizer": "stage:prepare/tokenizer",
                "corpora": {n: f"stage:prepare/corpora/{n}/train" for n in ("general", "domain")},
            },
            "base": training
            | {
                "kind": "pretrain",
                "model": {
                    "name": "random",
                    "shape": "bert_tiny",
                    "tokenizer": "stage:prepare/tokenizer",
                },
                "data": {
                    "length": length,
                    "packing": {"name": "best_fit"},
                    "sources": {"general": {"shards": "stage:prepare/corpora/general/train"}},
                },
                "steps": 120,
                "validation": {"every": 60, "rows": 16, "sets": sets},
            },
            "fisher": {
                "kind": "fisher",
                "model": {"name": "pretrained", "location": "stage:base/export"},
                "data": {
                    "length": length,
                    "packing": {"name": "best_fit"},
                    "sources": {"general": {"shards": "stage:prepare/corpora/general/train"}},
                },
                "objective": objective,
                "steps": 4,
                "backend": {"name": "deepspeed", "config": zero(deepspeed, 2)},
            },
            "dapt": training
            | {
                "kind": "pretrain",
                "model": {"name": "pretrained", "location": "stage:base/export"},
                "data": {
                    "length": length,
                    "packing": {"name": "best_fit"},
                    "sources": {
                        "domain": {"shards": "stage:prepare/corpora/domain/train", "weight": 0.75},
                        "general": {
                            "shards": "stage:prepare/corpora/general/train",
                            "weight": 0.25,
                        },
                    },
                },
                "optimizer": {"name": "adamw", "lr": 1e-3, "layer_decay": 0.9},
                "penalties": [
                    {"name": "l2_sp", "strength": 0.01},
                    {"name": "ewc", "strength": 10.0, "fisher": "stage:fisher"},
                    {"name": "distillation", "strength": 0.2, "teacher": "stage:base/export"},
                ],
                "averaging": {"name": "swa", "start": 0.5},
                "validation": {"every": 15, "rows": 16, "sets": sets},
                "forgetting": {
                    "set": "general",
                    "draws": 3,
                    "above": [
                        {"floors": 0.01, "do": "lower_rate", "factor": 0.9},
                        {"floors": 0.02, "do": "more_replay", "source": "general", "factor": 1.5},
                    ],
                },
                "probes": {"topics": {"task": "stage:rows", "every": 30}},
                "choose": {"by": "probe/topics/accuracy"},
                "steps": 60,
            },
            "adapter": training
            | {
                "kind": "pretrain",
                "model": {"name": "pretrained", "location": "stage:base/export"},
                "data": {
                    "length": length,
                    "packing": {"name": "concatenate"},
                    "sources": {"domain": {"shards": "stage:prepare/corpora/domain/train"}},
                },
                "objective": {"name": "mlm", "masking": {"name": "dynamic", "rate": 0.2}},
                "adaptation": {"name": "lora", "rank": 4},
                "schedule": {"name": "cosine", "warmup": 2},
                "backend": {"name": "deepspeed", "config": zero(deepspeed, 2)},
                "steps": 60,
            },
            "decoder": training
            | {
                "kind": "pretrain",
                "model": {
                    "name": "random",
                    "shape": "gpt2_tiny",
                    "tokenizer": "stage:prepare/tokenizer",
                },
                "data": {
                    "length": length,
                    "sources": {"general": {"shards": "stage:prepare/corpora/general/train"}},
                },
                "objective": {"name": "clm"},
                "backend": {"name": "deepspeed", "config": zero(deepspeed, 3)},
                "epochs": 0.5,
            },
            "finetune": {
                "kind": "finetune",
                "task": "stage:rows",
                "arms": arms,
                "seeds": [1, 2, 3],
                "length": length,
                "head": {"name": "linear", "pooling": "mean", "dropout": 0.1},
                "epochs": 2,
                "optimizer": {"name": "adamw", "lr": 1e-3},
                "schedule": {"name": "linear", "warmup": 0.1},
                "backend": {"name": "plain", "config": {"train_batch_size": 16}},
            },
            "evaluate": {
                "kind": "evaluate",
                "finetune": "stage:finetune",
                "baseline": "base",
                "language_model": {
                    "arms": arms,
                    "sets": sets,
                    "length": length,
                    "rows": 16,
                    "objective": objective,
                },
            },
            "report": {
                "kind": "report",
                "evaluate": "stage:evaluate",
                "gap": "stage:gap",
                "pretraining": ["stage:base", "stage:dapt"],
            },
        },
    }


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two corpora and the rows of a task."""
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "general.jsonl", 1, 900)
    write_corpus(folder / "domain.jsonl", 2, 500)
    write_task(folder, 2)
    return folder


@pytest.fixture(scope="session")
def write_recipe(corpora: Path) -> Callable[[Path], Path]:
    """Writes the recipe for an output folder beside it; returns its path."""

    def write(output: Path) -> Path:
        path = output.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(recipe(corpora, output), sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def environment(operators: dict[str, str]) -> dict[str, str]:
    """The environment of a user's shell, with the operators that were built at set-up."""
    cache = operators["ONWARD_CACHE"]
    return {**os.environ, "ONWARD_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def onward(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``onward`` to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=900
        )

    return run
