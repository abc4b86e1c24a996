"""A mixture that changes in mid-run: what was read stays, the rest follows, or it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import CheckpointError, RecipeError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import tokenizer_record
from engine.assemble import assemble
from engine.pretraining import PretrainStage
from launcher.chain import stage_key
from tests.engine import tiny

BATCH, LENGTH = 512, 12
LATER = {"after": 1024, "weights": {"general": 1, "domain": 3}}
SKIPPED = {"start": 1100, "stop": 1110}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, two sources, and a run that was killed after its third step of four."""
    folder = tmp_path_factory.mktemp("schedule")
    record = tokenizer_record(tiny.tokenizer_folder(folder / "tokenizer"))
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    for seed, name in enumerate(("general", "domain")):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 10, 400).astype(np.int32)
        tokens = rng.integers(5, tiny.VOCABULARY, lengths.sum())
        with ShardWriter(folder / name, record, 10_000) as writer:
            writer.write(tokens, lengths, np.full(len(tokens), WORD_START, np.uint8))
            writer.finish({})
    stage(folder).run(context(folder, folder / "run"))
    shutil.rmtree(folder / "run" / "checkpoints" / "step-4")
    shutil.rmtree(folder / "run" / "export")
    return folder


def stage(place: Path, general: dict[str, Any] | None = None, **data: Any) -> PretrainStage:
    sources = {
        "general": {"shards": str(place / "general"), "weight": 3, **(general or {})},
        "domain": {"shards": str(place / "domain"), "weight": 1},
    }
    values = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": "bert_tiny", "tokenizer": str(place / "tokenizer")},
        "data": {"length": LENGTH, "sources": sources} | data,
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.1},
        "steps": 4,
        "backend": {
            "name": "plain",
            "config": {"train_batch_size": BATCH, "train_micro_batch_size_per_gpu": BATCH},
        },
        "checkpoint": {"every": 1, "keep": 4},
        "log_every": 1,
    }
    return PretrainStage.model_validate(values)


def context(place: Path, folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("dapt", folder, 1, stage_key(stage(place), 1, {}), {})


def copy_of_run(place: Path, target: Path, last: int) -> StageContext:
    """The run as it was after step ``last``."""
    shutil.copytree(place / "run", target)
    for folder in (target / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > last:
            shutil.rmtree(folder)
    return context(place, target)


def shares(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_changes_that_come_later_are_taken_up_without_a_new_start(
    place: Path, tmp_path: Path
) -> None:
    grown = stage(place, changes=[LATER], skip=[SKIPPED])
    assert stage_key(grown, 1, {}) == stage_key(stage(place), 1, {})
    resumed = copy_of_run(place, tmp_path / "run", 2)
    grown.check(resumed)
    stream = grown.open_stream(resumed)
    before = stage(place).open_stream(resumed)
    read = np.arange(1024)
    assert np.array_equal(stream.order(read).sample, before.order(read).sample)
    later = stream.order(np.arange(1024, 2048 - 10))
    assert np.bincount(later.source).tolist()[1] == pytest.approx(768, abs=10)
    grown.run(resumed)
    old, new = shares(place / "run"), shares(resumed.folder)
    assert [line["loss"] for line in old[:2]] == [line["loss"] for line in new[:2]]
    assert [line["loss"] for line in old[2:]] != [line["loss"] for line in new[2:]]
    assert (resumed.folder / "export").is_dir()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"changes": [LATER]}, "mixture"),
        ({"skip": [SKIPPED]}, "skip"),
    ],
)
def test_a_change_of_what_was_read_is_refused(
    place: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    resumed = copy_of_run(place, tmp_path / "run", 3)
    for meet in (stage(place, **change).check, stage(place, **change).run):
        with pytest.raises(CheckpointError, match=f"(?s)at row 1536.*{named}") as caught:
            meet(resumed)
        assert caught.value.exit_code == 4


def test_a_run_that_asks_for_more_than_the_limits_allow_is_refused_before_its_first_step(
    place: Path, tmp_path: Path
) -> None:
    rows = stage(place).open_stream(context(place, tmp_path / "run")).rows
    limited = stage(place, {"most_epochs": 1.5})
    limited.check(context(place, tmp_path / "run"))
    sources = {
        name: source.model_copy(update={"most_epochs": 1.5})
        for name, source in limited.data.sources.items()
    }
    none_left = limited.model_copy(
        update={"data": limited.data.model_copy(update={"sources": sources})}
    )
    there = sum(int(1.5 * size) for size in rows)
    assert there < 4 * BATCH
    for meet in (none_left.check, lambda at: assemble(none_left, at)):
        with pytest.raises(RecipeError, match=f"asks for 2048 rows, but there are {there} within"):
            meet(context(place, tmp_path / "run"))
