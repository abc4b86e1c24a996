"""Two small corpora, prepared once by the product, and the recipes that train on them."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.draw import Fault, Setup

ROOT = Path(__file__).resolve().parents[2]
STAGE = "train"
LENGTH = 32
_SYLLABLES = ("ka", "lo", "mi", "ren", "tos", "va", "quel", "dri", "un", "pho", "zir", "be")
_DOCUMENTS = {"general": 240, "domain": 160}


def prepare(place: Path) -> Path:
    """The folder of the prepared corpora and tokenizer; made at the first call."""
    run = place / "prepared"
    if not (run / "prepare" / "status.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        path = place / "prepare.yaml"
        path.write_text(yaml.safe_dump(preparing(place, run)), encoding="utf-8")
        command = [sys.executable, "-m", "launcher", "run", str(path)]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr + done.stdout)
    return run / "prepare"


def environment() -> dict[str, str]:
    """What the product's own processes are started with."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


@dataclass(slots=True)
class Now:
    """What may change between the attempts of a run, as it is by now."""

    world: int
    stage: int
    reading: str | None = None
    hang_after: float = 900.0

    def after(self, fault: Fault) -> None:
        """What is otherwise after a fault."""
        self.world = fault.world or self.world
        self.stage = self.stage if fault.stage is None else fault.stage
        self.reading = fault.reading or self.reading


def recipe(prepared: Path, output: Path, setup: Setup, now: Now) -> dict[str, Any]:
    """A recipe of one training stage."""
    sources = {
        name: {"shards": str(prepared / "corpora" / name / "train"), "weight": weight}
        for name, weight in (("domain", 0.75), ("general", 0.25))
    }
    data: dict[str, Any] = {"length": LENGTH, "packing": {"name": "best_fit"}, "sources": sources}
    data |= {"pread": {"mode": "pread"}, "sizes": {"verify": "sizes"}}.get(now.reading or "", {})
    training: dict[str, Any] = {
        "kind": "pretrain",
        "model": {
            "name": "random",
            "shape": f"{setup.model}_tiny",
            "tokenizer": str(prepared / "tokenizer"),
        },
        "data": data,
        "objective": {"name": "mlm" if setup.model == "bert" else "clm"},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "linear", "warmup": 2},
        "steps": setup.steps,
        "backend": {"name": "deepspeed", "config": _deepspeed(setup, now.stage)},
        "checkpoint": {"every": setup.every, "keep": setup.keep, "mode": setup.mode},
        "hang_after": now.hang_after,
        "validation": {
            "every": 4,
            "rows": 8,
            "sets": {"held out": str(prepared / "corpora" / "domain" / "held_out")},
        },
        "log_every": 1,
    }
    if setup.extra == "penalty":
        training["penalties"] = [{"name": "l2_sp", "strength": 0.05}]
    if setup.extra == "lora":
        training["adaptation"] = {"name": "lora", "rank": 2, "dropout": 0.1}
    if setup.extra == "average":
        training["averaging"] = {"name": "ema", "decay": 0.8}
    if setup.guard:
        training["guard"] = {"spike": 4.0, "window": 3, "patience": 2, "rollbacks": 2}
    return {"name": "campaign", "output": str(output), "seed": 7, "stages": {STAGE: training}}


def _deepspeed(setup: Setup, stage: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "train_batch_size": setup.batch,
        "train_micro_batch_size_per_gpu": setup.micro,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    return values | ({"bf16": {"enabled": True}} if setup.precision == "bf16" else {})


def preparing(place: Path, run: Path) -> dict[str, Any]:
    """A recipe of one prepare stage; its texts are written to ``place``."""
    for seed, (name, count) in enumerate(_DOCUMENTS.items()):
        _write_corpus(place / f"{name}.jsonl", seed, count)
    corpora = {
        name: {
            "sources": [{"name": "jsonl", "path": str(place / f"{name}.jsonl")}],
            "split": {"held_out": 0.1},
        }
        for name in _DOCUMENTS
    }
    tokenizer = {"name": "wordpiece", "vocabulary_size": 160, "corpora": ["general"]}
    stage = {"kind": "prepare", "processes": 1, "tokenizer": tokenizer, "corpora": corpora}
    return {"name": "corpora", "output": str(run), "seed": 7, "stages": {"prepare": stage}}


def _write_corpus(path: Path, seed: int, documents: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))) for _ in range(60)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(rng.choices(words, k=rng.randint(5, 40))) + "."
            file.write(json.dumps({"id": f"{path.stem}{number}", "text": text}) + "\n")
