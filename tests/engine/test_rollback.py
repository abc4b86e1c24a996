"""A stage under a guard, on plain torch: skipped, rolled back, killed on the way; the average."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import NumericalError, Preempted, RecipeError
from data_pipeline.streaming import describe_steps
from engine import faults
from engine.assemble import assemble
from engine.checkpoint import open_checkpoint
from engine.exporting import export_step
from engine.hooks import CheckpointHook, GuardHook
from engine.pretraining import PretrainStage
from engine.training import train_from_newest
from tests.engine.test_assemble import context, place, stage

__all__ = ["place"]
STEPS = 16
TIMING = (
    *("seconds", "tokens_per_second", "tflops", "mfu", "step_seconds", "data_wait", "memory"),
    "restarts",
)
# Steps are counted from 0. The checkpoint of step 10 lies among them, that of step 8 before them.
SPIKES = "nan@loss:step=9;inf@loss:step=10;spike@loss:step=11"


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    faults.load("")


def guarded(place: Path, **changes: Any) -> PretrainStage:
    guard = {"spike": 2.0, "window": 4, "patience": 3} | changes.pop("guard", {})
    values = {
        "adaptation": {"name": "full"},
        "averaging": {"name": "ema", "decay": 0.9},
        "steps": STEPS,
        "checkpoint": {"every": 2, "keep": 1},
        "log_every": 1,
        "guard": guard,
    }
    return stage(place, **(values | changes))


def go(asked: PretrainStage, folder: Path, fault: str = SPIKES) -> None:
    faults.load(fault)
    assert train_from_newest(assemble(asked, context(folder))) == asked.steps


def state(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    store = open_checkpoint(folder / "checkpoints" / f"step-{step}").store()
    return {
        f"{name}|{key}": store.whole(name, key)
        for name in store.names
        for key in ("fp32", *store.state_keys)
    }


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in found]


def require_same(one: Path, other: Path) -> None:
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    assert lines(one, "metrics.jsonl") == lines(other, "metrics.jsonl")


@pytest.fixture(scope="module")
def rolled_back(place: Path) -> Path:
    """A run that went back once."""
    folder = place / "runs" / "rolled-back"
    go(guarded(place), folder)
    return folder


def test_it_ends_as_a_run_that_never_tried_those_steps(
    place: Path, rolled_back: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardHook, "avoids", lambda _, step: step in range(8, 12))
    go(guarded(place), tmp_path, fault="")
    require_same(rolled_back, tmp_path)
    metrics = lines(rolled_back, "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["skipped"] for line in metrics] == [0] * 8 + [1, 2, 3, 4] + [4] * 4
    assert [line["loss"] is None for line in metrics] == [False] * 8 + [True] * 4 + [False] * 4


def test_the_file_tells_of_each_step_why_and_which_rows(place: Path, rolled_back: Path) -> None:
    told = lines(rolled_back, "skipped.jsonl")
    assert [(line["step"], line["avoided"]) for line in told] == [
        (n, True) for n in (9, 10, 11, 12)
    ]
    assert [line["why"].rstrip("0123456789.") for line in told] == [
        "between the checkpoint and the steps skipped",
        "the loss is nan",
        "the loss is inf",
        f"the loss {told[3]['loss']:.5g} is more than ",
    ]
    assert told[3]["loss"] > told[3]["threshold"] > 0
    stream = guarded(place).open_stream(context(rolled_back))
    for line in told:
        rows = describe_steps(stream, range(line["step"] - 1, line["step"]), 4, world=2)
        assert line["rows"] == [
            {name: getattr(row, name) for name in ("index", "source", "epoch", "sample", "shard")}
            for row in rows
        ]


@pytest.mark.grid
@pytest.mark.parametrize(
    "point", ["rollback", "rolled_back", "data:step=8,nth=2", "optimizer:step=13"]
)
def test_a_run_that_dies_around_a_rollback_ends_alike(
    place: Path, rolled_back: Path, tmp_path: Path, point: str
) -> None:
    with pytest.raises(RuntimeError, match="injected at"):
        go(guarded(place), tmp_path, f"{SPIKES};error@{point}")
    go(guarded(place), tmp_path)
    require_same(rolled_back, tmp_path)
    assert lines(rolled_back, "skipped.jsonl") == lines(tmp_path, "skipped.jsonl")


def test_a_run_that_was_stopped_goes_back_to_where_it_would_have_gone(
    place: Path, rolled_back: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The spikes are steps 9 to 11: what the stop saves at 9 is nearer than the checkpoint of 8.
    asked, after_step = context(tmp_path), CheckpointHook.after_step

    def stopping(self: CheckpointHook, backend: Any, progress: Any, record: Any) -> None:
        after_step(self, backend, progress, record)
        if progress.step == 8:
            asked.stop.ask("SIGTERM")

    monkeypatch.setattr(CheckpointHook, "after_step", stopping)
    with pytest.raises(Preempted, match="after step 9 of 16"):
        train_from_newest(assemble(guarded(place), asked))
    monkeypatch.undo()
    folder = tmp_path / "checkpoints"
    assert {"step-8", "step-9"} <= {path.name for path in folder.glob("step-*")}
    go(guarded(place), tmp_path)
    require_same(rolled_back, tmp_path)
    kept = {path.name for path in (rolled_back / "checkpoints").glob("step-*")}
    assert kept == {path.name for path in folder.glob("step-*")}


def test_checkpoints_behind_the_training_are_there_before_a_rollback_deletes_them(
    place: Path, rolled_back: Path, tmp_path: Path
) -> None:
    policy = {"every": 2, "keep": 1, "mode": "async"}
    slow = "sleep@checkpoint.rename:step=10,seconds=1"
    go(guarded(place, checkpoint=policy), tmp_path, f"{SPIKES};{slow}")
    require_same(rolled_back, tmp_path)


def test_single_steps_are_skipped_and_a_taken_one_ends_the_row(place: Path, tmp_path: Path) -> None:
    go(guarded(place), tmp_path, "nan@loss:step=0;nan@loss:step=1;nan@loss:step=5")
    told = lines(tmp_path, "skipped.jsonl")
    assert [(line["step"], line["avoided"]) for line in told] == [
        (1, False),
        (2, False),
        (6, False),
    ]
    assert lines(tmp_path, "metrics.jsonl")[-1]["skipped"] == 3


def test_after_the_last_rollback_the_run_ends_and_names_the_steps(
    place: Path, tmp_path: Path
) -> None:
    asked = guarded(place, guard={"patience": 2, "rollbacks": 1})
    fault = ";".join(f"nan@loss:step={step}" for step in (4, 5, 6, 7))
    with pytest.raises(NumericalError, match=r"^steps 7, 8 were skipped in a row: the loss is nan"):
        go(asked, tmp_path, fault)


def test_there_must_be_a_checkpoint_from_before(place: Path, tmp_path: Path) -> None:
    asked = guarded(place, guard={"patience": 2})
    with pytest.raises(NumericalError, match="there is no checkpoint from before step 2 to go"):
        go(asked, tmp_path, "nan@loss:step=1;nan@loss:step=2")
    assert (tmp_path / "checkpoints" / "step-2").is_dir()


def test_a_guard_may_be_given_after_a_run_has_failed_without(place: Path, tmp_path: Path) -> None:
    fault = "nan@loss:step=5"
    with pytest.raises(NumericalError, match="step 6: the loss is not finite"):
        go(guarded(place).model_copy(update={"guard": None}), tmp_path, fault)
    go(guarded(place), tmp_path, fault)
    assert [line["step"] for line in lines(tmp_path, "skipped.jsonl")] == [6]


def test_the_average_is_exported_beside_the_weights(
    place: Path, rolled_back: Path, tmp_path: Path
) -> None:
    asked = guarded(place, steps=4)
    asked.run(context(tmp_path))
    held = state(tmp_path, 4)
    exports = [load_file(tmp_path / n / "model.safetensors") for n in ("export", "export-average")]
    for found, key in zip(exports, ("fp32", "ema"), strict=True):
        for name, value in found.items():
            assert torch.equal(value, held[f"backbone.{name}|{key}"]), name
    assert any(not torch.equal(exports[0][name], exports[1][name]) for name in exports[0])
    card = json.loads((tmp_path / "export-average" / "onward.json").read_text())
    assert card["lineage"]["weights"] == "average"

    next_stage = stage(place, tmp_path / "export-average", steps=1)
    assert assemble(next_stage, context(tmp_path / "next")).steps == 1
    with pytest.raises(RecipeError, match="the stage keeps no average"):
        export_step(
            asked.model_copy(update={"averaging": None}),
            context(tmp_path),
            4,
            tmp_path / "elsewhere",
            "average",
        )
