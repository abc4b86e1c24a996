"""Validation: held-out losses that do not depend on how many ranks share the work."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import NumericalError
from engine.hooks import ValidationHook
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
