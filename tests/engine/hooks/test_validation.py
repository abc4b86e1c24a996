"""Validation: held-out losses that do not depend on how many ranks share the work."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import NumericalError, RecipeError
from engine.hooks import Measured, ValidationHook
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import ThreadRank, on_ranks
from tests.engine.hooks.fakes import FakeBackend, Kept, record, scored

SETS = {
    "general": [scored(2.0, 1), scored(3.0, 4), scored(4.0, 5)],
    "domain": [scored(1.5, 3)],
}
EXPECTED = {
    "general": {"loss": 0.9, "targets": 10},
    "domain": {"loss": 0.5, "targets": 3},
}


def hook(path: Path, **more: Any) -> ValidationHook:
    return ValidationHook(path, **({"sets": SETS, "every": 4, "steps": 10} | more))


def drive(validation: ValidationHook, backend: Any, first: int, last: int) -> None:
    validation.on_start(backend, Progress(first - 1))
    for step in range(first, last + 1):
        validation.after_step(backend, Progress(step), record(step))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_before_the_first_step_every_few_and_at_the_end(tmp_path: Path) -> None:
    kept = Kept()
    drive(hook(tmp_path / "v.jsonl", sinks=[kept]), FakeBackend(), 1, 10)
    written = lines(tmp_path / "v.jsonl")
    assert [line["step"] for line in written] == [0, 4, 8, 10]
    assert all(line["sets"] == EXPECTED for line in written)
    assert [(kind, step) for kind, step, _ in kept.written] == [
        ("validation", step) for step in (0, 4, 8, 10)
    ]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_ranks_measures_the_same(tmp_path: Path, world: int) -> None:
    def act(ranks: ThreadRank) -> int:
        backend = FakeBackend(ranks)
        drive(hook(tmp_path / "v.jsonl"), backend, 10, 10)
        return backend.evaluated

    evaluated = on_ranks(world, act)
    assert lines(tmp_path / "v.jsonl") == [{"step": 10, "sets": EXPECTED}]
    # ZeRO-3 gathers weights in every forward: all ranks must run equally many.
    assert len(set(evaluated)) == 1


def test_a_resume_measures_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    drive(hook(path), FakeBackend(), 1, 9)
    drive(hook(path), FakeBackend(), 7, 10)
    assert [line["step"] for line in lines(path)] == [0, 4, 8, 10]
    drive(hook(path), FakeBackend(), 1, 1)
    assert [line["step"] for line in lines(path)] == [0]


@pytest.mark.parametrize("batches", [[scored(float("nan"), 2)], [scored(0.0, 0)], []])
def test_a_loss_that_is_none_is_an_error(tmp_path: Path, batches: list[Any]) -> None:
    validation = hook(tmp_path / "v.jsonl", sets={"general": SETS["general"], "bad": batches})
    backend: Any = FakeBackend()
    with pytest.raises(NumericalError, match="step 0: the held-out loss on bad"):
        validation.on_start(backend, Progress())


def test_a_validation_that_is_broken_off_is_made_good_at_the_resume(tmp_path: Path) -> None:
    path, turns = tmp_path / "v.jsonl", iter([True] * 8 + [False] * 5)
    stopped = hook(path, goes_on=lambda step: next(turns))
    drive(stopped, FakeBackend(), 1, 3)
    assert stopped.state_dict() == {"is_owed": False}
    stopped.after_step(FakeBackend(), Progress(4), record(4))  # type: ignore[arg-type]
    stopped.after_step(FakeBackend(), Progress(8), record(8))  # type: ignore[arg-type]
    assert [line["step"] for line in lines(path)] == [0, 4]
    resumed = hook(path)
    resumed.load_state_dict(stopped.state_dict())
    drive(resumed, FakeBackend(), 9, 10)
    assert [line["step"] for line in lines(path)] == [0, 4, 8, 10]
    assert resumed.state_dict() == {"is_owed": False}


def test_what_is_made_good_twice_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    drive(hook(path), FakeBackend(), 1, 7)
    # The run was ended at step 8; the one that made good for it was killed before it saved.
    for _ in range(2):
        resumed = hook(path)
        resumed.load_state_dict({"is_owed": True})
        drive(resumed, FakeBackend(), 9, 9)
    assert [line["step"] for line in lines(path)] == [0, 4, 8]


@pytest.mark.parametrize("world", [1, 2])
def test_every_rank_knows_what_was_measured_of_weights_and_average(
    tmp_path: Path, world: int
) -> None:
    def act(ranks: ThreadRank) -> list[float | None]:
        known = Measured()
        asked = hook(tmp_path / "v.jsonl", measured=known, measures=("accuracy",), average="ema")
        drive(asked, FakeBackend(ranks), 1, 4)
        ends = ("loss", "accuracy", "average/loss", "average/accuracy")
        return [known.at(f"validation/general/{end}", 4) for end in ends]

    # The fake's accuracy is half its loss, and its average's loss, too.
    assert on_ranks(world, act) == [pytest.approx([0.9, 0.45, 0.45, 0.225])] * world
    first, last = lines(tmp_path / "v.jsonl")
    assert last["sets"]["domain"] == {
        "loss": 0.5,
        "accuracy": 0.25,
        "targets": 3,
        "average": {"loss": 0.25, "accuracy": 0.125},
    }
    # Before the first step the average is the weights.
    assert first["sets"]["domain"]["average"] == {"loss": 0.5, "accuracy": 0.25}


def test_an_average_that_is_broken_off_is_owed(tmp_path: Path) -> None:
    turns = iter([True] * 4 + [True] * 4 + [False])
    stopped = hook(tmp_path / "v.jsonl", average="ema", goes_on=lambda step: next(turns))
    backend = FakeBackend()
    drive(stopped, backend, 1, 4)
    assert [line["step"] for line in lines(tmp_path / "v.jsonl")] == [0]
    assert stopped.state_dict() == {"is_owed": True}
    assert backend.scale == 1


def test_what_was_measured_is_known_by_path_and_step() -> None:
    known = Measured()
    known.tell("validation", 3, {"general": {"loss": 1.5, "targets": 7, "note": None}})
    assert known.at("validation/general/loss", 3) == 1.5
    assert known.at("validation/general/loss", 4) is None
    assert known.at("probe/task/macro_f1", 3) is None
    with pytest.raises(RecipeError, match="there are validation/general/loss, validation/general/"):
        known.at("validation/general/accuracy", 3)
    with pytest.raises(RecipeError, match="'validation/general/average/loss' is not measured"):
        known.at("validation/general/average/loss", 3)
    known.forget()
    assert known.at("validation/general/loss", 3) is None
