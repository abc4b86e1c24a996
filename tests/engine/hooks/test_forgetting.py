"""The forgetting hook: base and noise, lines, and that all ranks and resumes decide alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import NumericalError, RecipeError
from engine.choice import ChooseConfig
from engine.forgetting import ForgettingConfig, NoiseFloor
from engine.hooks import ChoiceHook, ForgettingHook, Measured, ValidationHook
from engine.hooks.forgetting import Back
from engine.hooks.noise import HeldOut
from engine.leaving import Finish, GoOn
from engine.protocols import Batch, Progress
from tests.engine.checkpoint.fakes import ThreadRank, on_ranks
from tests.engine.hooks.fakes import FakeBackend, Kept, record, scored

NOISE = [3.1, 2.9, 3.0, 3.2]


def draws(number: int) -> list[Batch]:
    """Mean losses of 3 with the fixed masks, then those of NOISE."""
    mean = 3.0 if number == 0 else NOISE[number - 1]
    return [scored(mean * 2, 2), scored(mean * 3, 3), scored(mean, 1)]


def hook(path: Path, known: Measured, *above: dict[str, Any], **more: Any) -> ForgettingHook:
    settings = {
        "set": "kept",
        "draws": 4,
        "above": list(above),
        "patience": more.pop("patience", 1),
    }
    given = {"held_out": HeldOut(draws, list), "raise_source": lambda *_: None} | more
    return ForgettingHook(ForgettingConfig.model_validate(settings), path, measured=known, **given)


def tell(known: Measured, step: int, loss: float) -> None:
    known.tell("validation", step, {"kept": {"loss": loss}})


def measure(watch: ForgettingHook, known: Measured, step: int, multiple: float) -> None:
    """A step whose loss lies so many floors above the base's."""
    floor = NoiseFloor.of_draws(NOISE, 2.0).floor
    tell(known, step, 3.0 + multiple * floor)
    watch.after_step(FakeBackend(), Progress(step), record(step))  # type: ignore[arg-type]


def begun(path: Path, *above: dict[str, Any], **more: Any) -> tuple[ForgettingHook, Measured]:
    known = Measured()
    tell(known, 0, 3.0)
    watch = hook(path, known, *above, **more)
    watch.on_start(FakeBackend(), Progress())  # type: ignore[arg-type]
    return watch, known


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_base_and_floor_do_not_depend_on_the_ranks(tmp_path: Path, world: int) -> None:
    def act(ranks: ThreadRank) -> dict[str, Any]:
        watch = hook(tmp_path / "f.jsonl", Measured())
        watch.on_start(FakeBackend(ranks), Progress())  # type: ignore[arg-type]
        return watch.state_dict()

    expected = NoiseFloor.of_draws(NOISE, 2.0)
    for found in on_ranks(world, act):
        assert found["base"] == pytest.approx(3.0)
        assert found["noise"]["floor"] == pytest.approx(expected.floor)
        assert (found["noise"]["kind"], found["noise"]["samples"]) == ("masks", 4)


def test_where_nothing_is_drawn_the_rows_are_the_noise(tmp_path: Path) -> None:
    fixed = [scored(6.0, 2), scored(12.0, 3), scored(3.0, 1)]
    watch = hook(tmp_path / "f.jsonl", Measured(), held_out=HeldOut(lambda _: fixed, lambda: fixed))
    watch.on_start(FakeBackend(), Progress())  # type: ignore[arg-type]
    noise = watch.state_dict()["noise"]
    assert (noise["kind"], noise["samples"]) == ("rows", 3)
    same = [scored(2.0, 1), scored(2.0, 1)]
    flat = hook(tmp_path / "f.jsonl", Measured(), held_out=HeldOut(lambda _: same, lambda: same))
    with pytest.raises(NumericalError, match="no noise can be told"):
        flat.on_start(FakeBackend(), Progress())  # type: ignore[arg-type]


def test_a_line_for_each_measurement_and_its_band_in_the_sinks(tmp_path: Path) -> None:
    kept = Kept()
    watch, known = begun(tmp_path / "f.jsonl", {"floors": 1, "do": "warn"}, sinks=[kept])
    measure(watch, known, 4, 1.5)
    watch.after_step(FakeBackend(), Progress(5), record(5))  # type: ignore[arg-type]
    first, last = lines(tmp_path / "f.jsonl")
    assert (first["step"], first["change"]) == (0, 0)
    assert last["multiple"] == pytest.approx(1.5)
    assert last["high"] - last["low"] == pytest.approx(2 * last["floor"])
    assert last["actions"] == [{"floors": 1, "do": "warn"}]
    kind, step, numbers = kept.written[-1]
    assert (kind, step, numbers["done"]) == ("forgetting", 4, {"warn": 1})
    assert {"change", "low", "high", "multiple", "rate"} <= set(numbers)


def test_a_base_that_is_broken_off_is_none(tmp_path: Path) -> None:
    turns = iter([True] * 7 + [False] * 9)
    watch, _ = begun(tmp_path / "f.jsonl", may_turn=lambda _: next(turns))
    assert watch.state_dict()["base"] is None
    assert lines(tmp_path / "f.jsonl") == []


def test_rates_and_stops_are_decided_alike_after_a_resume(tmp_path: Path) -> None:
    rungs = ({"floors": 1, "do": "lower_rate", "factor": 0.5}, {"floors": 4, "do": "stop"})
    curve = {2: 1.5, 4: 1.6, 6: 2.7, 8: 4.5}
    watch, known = begun(tmp_path / "f.jsonl", *rungs)
    for step, multiple in curve.items():
        resumed = hook(tmp_path / "f.jsonl", Measured(), *rungs)
        resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
        resumed.on_start(FakeBackend(), Progress(step - 2))  # type: ignore[arg-type]
        before = lines(tmp_path / "f.jsonl")
        measure(watch, known, step, multiple)
        after = lines(tmp_path / "f.jsonl")
        fresh = Measured()
        resumed._measured = fresh
        (tmp_path / "f.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
        measure(resumed, fresh, step, multiple)
        assert lines(tmp_path / "f.jsonl") == after
        assert resumed.state_dict() == watch.state_dict()
    assert [watch.rate(step) for step in (1, 2, 5, 6, 8)] == [1, 0.5, 0.5, 0.25, 0.25]
    assert isinstance(watch.leaves(Progress(8)), Finish)
    assert watch.wants_saved(8)


def test_a_rollback_goes_to_the_last_measurement_within_the_floor(tmp_path: Path) -> None:
    back = {"floors": 2, "do": "roll_back", "factor": 0.5, "most": 2}
    watch, known = begun(tmp_path / "f.jsonl", back)
    measure(watch, known, 2, 0.9)
    saved = watch.state_dict()
    measure(watch, known, 4, 1.1)
    assert watch.in_doubt == 2
    with pytest.raises(Back) as caught:
        measure(watch, known, 6, 2.5)
    assert (caught.value.most, caught.value.last, caught.value.hook) == (2, 5, "forgetting")
    lasting = watch.lasting()
    watch.load_state_dict(saved)
    watch.keep(lasting)
    watch.go_on(caught.value, 2)
    assert [watch.rate(step) for step in (1, 2, 9)] == [1, 0.5, 0.5]
    measure(watch, known, 4, 0.5)
    ((action,),) = [line["actions"] for line in lines(tmp_path / "f.jsonl") if line["actions"]]
    told = {"at": 6, "to": 2, "factor": 0.5, "do": "roll_back"}
    assert told.items() <= action.items()


def test_more_replay_leaves_the_loop_once_and_is_saved_first(tmp_path: Path) -> None:
    asked: list[tuple[int, str, float]] = []
    more = {"floors": 1, "do": "more_replay", "source": "general", "factor": 3}
    watch, known = begun(
        tmp_path / "f.jsonl", more, raise_source=lambda *given: asked.append(given)
    )
    measure(watch, known, 2, 1.5)
    assert asked == [(2, "general", 3)]
    assert watch.wants_saved(2)
    assert isinstance(watch.leaves(Progress(2)), GoOn)
    assert watch.leaves(Progress(2)) is None

    def refuse(*given: Any) -> None:
        msg = "too late"
        raise RecipeError(msg)

    watch, known = begun(tmp_path / "g.jsonl", more, raise_source=refuse)
    measure(watch, known, 2, 1.5)
    assert lines(tmp_path / "g.jsonl")[-1]["actions"][0]["refused"] == "too late"
    assert watch.leaves(Progress(2)) is None


def test_what_a_resumed_run_makes_good_is_decided_by(tmp_path: Path) -> None:
    """The run was ended in the middle of its validation at step 4."""
    turns = iter([True, True, False])

    def hooks(goes_on: Any) -> tuple[ValidationHook, ChoiceHook]:
        known = Measured()
        validation = ValidationHook(
            tmp_path / "v.jsonl", {"kept": [scored(6.0, 2)]}, 2, 9, (), goes_on, known
        )
        return validation, ChoiceHook(ChooseConfig(by="validation/kept/loss", patience=1), known)

    before = hooks(lambda _: next(turns))
    for each in before:
        each.on_start(FakeBackend(), Progress())  # type: ignore[arg-type]
    for step in (2, 4):
        for each in before:
            each.after_step(FakeBackend(), Progress(step), record(step))  # type: ignore[arg-type]
    assert before[1].leaves(Progress(4)) is None
    after = hooks(lambda _: True)
    for old, new in zip(before, after, strict=True):
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
        new.on_start(FakeBackend(), Progress(4))  # type: ignore[arg-type]
    assert [each.step for each in after[1].contest.values] == [2, 4]
    assert isinstance(after[1].leaves(Progress(4)), Finish)
    assert (after[1].needs(1), after[1].needs(4)) == (None, 2)
