"""What is done after a failure, as a table."""

import dataclasses

import pytest

from configs.errors import (
    Cause,
    CheckpointError,
    DataError,
    LaunchError,
    NumericalError,
    OnwardError,
    Preempted,
    RecipeError,
    ResourceError,
    note_step,
)
from launcher.blame import Failure, blame
from launcher.interruption import Interrupted
from launcher.policy import LONGEST_BACK_OFF, back_off, decide


def at_step(error: BaseException, step: int) -> BaseException:
    note_step(error, step)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "act", "again"),
    [
        (RecipeError("x"), "recipe", "end", "end"),
        (DataError("x"), "data", "end", "end"),
        (CheckpointError("x"), "checkpoint", "end", "end"),
        (NumericalError("step 7: the loss is not finite"), "numerical", "end", "end"),
        (ResourceError("x", Cause("in_use")), "in_use", "end", "end"),
        (at_step(ResourceError("x", Cause("memory")), 3), "memory", "restart", "end"),
        (ResourceError("too large a model", Cause("memory")), "memory", "restart", "end"),
        (MemoryError(), "memory", "restart", "end"),
        (DataError("cannot be mapped", Cause("memory")), "memory", "restart", "end"),
        (ResourceError("x", Cause("space", "/d", 10)), "space", "room", "room"),
        (ResourceError("x", Cause("port")), "port", "at_once", "at_once"),
        (LaunchError("x", Cause("port")), "port", "at_once", "at_once"),
        (ResourceError("a remote file cannot be read"), "resource", "restart", "restart"),
        (LaunchError("1 of 2 processes came up"), "lost", "restart", "restart"),
        (Preempted("x"), "preempted", "restart", "restart"),
        (Interrupted(15), "stopped", "restart", "restart"),
        (at_step(OnwardError("x", Cause("unforeseen")), 3), "crash", "restart", "end"),
        (
            at_step(CheckpointError("KeyError: x", Cause("unforeseen")), 3),
            "crash",
            "restart",
            "end",
        ),
        # Before the first step it may be a moment's trouble.
        (OnwardError("x", Cause("unforeseen")), "crash", "restart", "restart"),
        (KeyError("x"), "crash", "restart", "restart"),
    ],
)
def test_each_error_has_its_answer_at_the_first_and_at_the_second_time(
    error: BaseException, kind: str, act: str, again: str
) -> None:
    failure = blame(error)
    assert failure.kind == kind
    first, second = decide(failure, None), decide(failure, failure)
    assert (first.act, second.act) == (act, again)
    assert all(bool(decision.why) == (decision.act == "end") for decision in (first, second))


def test_a_bad_batch_is_told_of_the_guard() -> None:
    assert "`guard`" in decide(blame(NumericalError("step 7: not finite")), None).why


CRASH = Failure("crash", "x", 1, stage="dapt", step=7, sameness="KeyError: #")


@pytest.mark.parametrize(
    "changes",
    [{"step": 8}, {"step": None}, {"stage": "tapt"}, {"sameness": "ValueError"}, {"kind": "lost"}],
)
def test_another_place_or_another_error_is_not_the_same_again(changes: dict[str, object]) -> None:
    other = dataclasses.replace(CRASH, **changes)  # type: ignore[arg-type]
    assert decide(CRASH, CRASH).act == "end"
    assert decide(CRASH, other).act == "restart"


def test_without_its_host_the_same_error_gets_another_try() -> None:
    assert decide(CRASH, CRASH, moved=True).act == "restart"


def test_numbers_in_a_message_do_not_make_another_error() -> None:
    first, second = (
        blame(
            OnwardError(f"rank 1 (process {pid} on h): KeyError: 0x7f{pid:x}", Cause("unforeseen"))
        )
        for pid in (11, 12)
    )
    assert first.sameness == second.sameness


def test_pauses_double_up_to_a_bound() -> None:
    assert [back_off(number) for number in (1, 2, 3, 9, 10, 10**6)] == [
        *(1.0, 2.0, 4.0, 256.0),
        *(LONGEST_BACK_OFF, LONGEST_BACK_OFF),
    ]
