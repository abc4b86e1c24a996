"""A run that was saved at one ZeRO stage goes on at another, and on the plain backend."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.errors import CheckpointError
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from launcher import chain
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, Workers
from tests.engine import tiny
from tests.warm import WarmWorkers

PLAIN = {"name": "plain", "config": {"train_batch_size": 4}}


def write_recipe(folder: Path) -> None:
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    record = tokenizer_record(tokenizer)
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 22, 60).astype(np.int32)
    tokens = rng.integers(5, tiny.VOCABULARY, lengths.sum())
    with ShardWriter(folder / "shards", record, 10_000) as writer:
        writer.write(tokens, lengths, np.full(len(tokens), WORD_START, np.uint8))
        writer.finish({})
    stage = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": "bert_tiny", "tokenizer": str(tokenizer)},
        "data": {"length": 24, "sources": {"only": {"shards": str(folder / "shards")}}},
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": 4,
        "backend": PLAIN,
        "checkpoint": {"every": 2},
        "log_every": 1,
    }
    values = {"name": "on", "output": str(folder / "run"), "seed": 1, "stages": {"base": stage}}
    (folder / "r.yaml").write_text(yaml.safe_dump(values))


def backend(zero: object) -> str:
    values = {
        "train_batch_size": 4,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return f"stages.base.backend={json.dumps({'name': 'deepspeed', 'config': values})}"


def work(recipe: str, settings: list[str]) -> None:
    """On every rank: the stage from where it stands to its end."""
    from engine import distributed

    loaded = load_recipe(Path(recipe), settings)
    run = RunFolder(loaded.output)
    distributed.start()
    context = chain.enter(loaded, run, "base", workers=Workers(processes=1, threads=1))
    if context is not None:
        chain.finish(run, "base", loaded.stages["base"].run(context))


def break_off(folder: Path) -> None:
    """As if it had been killed after its third step."""
    shutil.rmtree(folder / "run/base/checkpoints/step-4")
    shutil.rmtree(folder / "run/base/export")
    path = folder / "run/base/status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "failed"}))


def losses(folder: Path) -> list[float]:
    lines = (folder / "run/base/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.processes
def test_saved_at_stage_2_it_goes_on_with_others(warm: WarmWorkers, tmp_path: Path) -> None:
    write_recipe(tmp_path)

    def go(*settings: str) -> str:
        arguments = {"recipe": str(tmp_path / "r.yaml"), "settings": list(settings)}
        (ended,) = warm.run("tests.launcher.test_other_backend:work", arguments, world=1)
        assert ended.code == 0, ended.text
        return ended.text

    go(backend({"stage": 2}))
    unbroken = losses(tmp_path)
    for settings, told in (
        ([backend({"stage": 3})], "goes on with ZeRO stage 3"),
        ([backend("auto")], "goes on with ZeRO stage auto"),
        ([], "goes on with backend plain"),
    ):
        break_off(tmp_path)
        assert told in go(*settings)
        assert losses(tmp_path) == pytest.approx(unbroken, abs=1e-5)
    break_off(tmp_path)
    changed = load_recipe(tmp_path / "r.yaml", ["stages.base.backend.config.train_batch_size=8"])
    with pytest.raises(CheckpointError, match=r"backend\.global_batch: 4 -> 8"):
        chain.enter(changed, RunFolder(changed.output), "base")
