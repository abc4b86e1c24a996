"""A pretraining stage of a few seconds, for tests that stop, kill and resume it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.errors import OnwardError
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from launcher.interruption import Interrupted
from launcher.outcome import explain, read_outcomes
from tests.engine import tiny
from tests.warm import Ended, Handle, WarmWorkers

STEPS = 12
STAGE = "dapt"
DEEPSPEED = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 1000000,
}


def make_data(folder: Path) -> Path:
    """A tokenizer and 200 documents as shards."""
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 200).astype(np.int32)
    tokens = rng.integers(5, tiny.VOCABULARY, lengths.sum())
    record = tokenizer_record(tokenizer)
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    with ShardWriter(folder / "shards", record, 400) as writer:
        writer.write(tokens, lengths, np.ones(len(tokens), np.uint8))
        writer.finish({})
    return folder


def write_recipe(data: Path, output: Path, **changes: Any) -> Path:
    """Twelve steps with dropout, validated every fourth and saved every fifth."""
    stage = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": "bert_tiny", "tokenizer": str(data / "tokenizer")},
        "data": {"length": 24, "sources": {"only": {"shards": str(data / "shards")}}},
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": STEPS,
        "backend": {"name": "deepspeed", "config": DEEPSPEED},
        "checkpoint": {"every": 5},
        "validation": {"every": 4, "rows": 16, "sets": {"held": str(data / "shards")}},
        "log_every": 1,
    }
    output.mkdir(parents=True)
    recipe = {"name": "stop", "output": str(output), "seed": 1, "stages": {STAGE: stage | changes}}
    path = output / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(output: Path) -> dict[str, Any]:
    """What must not depend on how often a run was stopped."""
    folder = output / STAGE
    metrics = [
        {key: line[key] for key in ("step", "loss", "lr", "grad_norm", "tokens")}
        for line in lines(folder / "metrics.jsonl")
    ]
    model = (folder / "export" / "model.safetensors").read_bytes()
    return {"metrics": metrics, "validation": lines(folder / "validation.jsonl"), "model": model}


def saved(output: Path) -> list[int]:
    """The steps of the checkpoints that are there."""
    folders = (output / STAGE / "checkpoints").glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def processes_of(output: Path) -> list[int]:
    """Living processes that have the run folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if str(output) in path.read_text(errors="replace") and state not in "ZX":
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def until(is_so: Callable[[], object], seconds: float = 250.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


class Launches:
    """Launches of one run, as the launcher makes them but for its own processes."""

    def __init__(self, warm: WarmWorkers, data: Path, output: Path, **changes: Any) -> None:
        self.warm = warm
        self.output = output
        self.recipe = write_recipe(data, output, **changes)
        self.number = 0

    @property
    def folder(self) -> Path:
        """Where the ranks of the last one left word."""
        return self.output / f"launch-{self.number}"

    def start(self, fault: str = "", grace: float = 60.0, patience: float = 20.0) -> Handle:
        """Begin one, with faults; ranks that outlive another one so long are killed."""
        self.number += 1
        self.folder.mkdir()
        words = [str(self.recipe), STAGE, f"--report_to={self.folder}", f"--grace={grace}"]
        faults = {"ONWARD_FAULT": fault}
        return self.warm.start(
            "launcher.worker:main", {"arguments": words}, env=faults, grace=patience, warning=0.5
        )

    def run(self, fault: str = "", grace: float = 60.0, patience: float = 20.0) -> list[Ended]:
        """One, to its end."""
        return self.start(fault, grace, patience).wait(90)

    def explained(self, ended: list[Ended]) -> OnwardError | Interrupted:
        """What the launcher would make of its end."""
        code = next((e.code or 256 - (e.signal or 0) for e in ended if e.code or e.signal), 0)
        return explain(read_outcomes(self.folder), len(ended), code, self.folder / "log")
