"""Out of what the ranks leave, the one error that explains the end."""

from pathlib import Path

import pytest

from configs.errors import (
    DataError,
    LaunchError,
    NumericalError,
    OnwardError,
    Preempted,
    ResourceError,
)
from launcher.blame import blame
from launcher.interruption import Interrupted
from launcher.outcome import Outcome, Reporter, explain, read_outcomes

ECHO = "Read error [127.0.0.1]: Connection reset by peer. GLHF"


def outcome(rank: int, **facts: str) -> Outcome:
    return Outcome(**({"rank": rank, "host": "h", "pid": 100 + rank, "stage": "base"} | facts))  # type: ignore[arg-type]


def error(rank: int, kind: str, message: str) -> Outcome:
    return outcome(rank, state="error", kind=kind, message=message, traceback="/t.txt")


def test_an_error_for_a_person_comes_before_its_echoes(tmp_path: Path) -> None:
    found = explain(
        [
            error(0, "RuntimeError", ECHO),
            error(1, "KeyError", "x"),
            error(2, "NumericalError", "loss at step 7"),
        ],
        3,
        1,
        tmp_path,
    )
    assert isinstance(found, NumericalError)
    assert str(found) == "loss at step 7"


def test_an_unexpected_exception_names_rank_and_traceback(tmp_path: Path) -> None:
    found = explain([error(0, "RuntimeError", ECHO), error(1, "KeyError", "x")], 2, 1, tmp_path)
    assert type(found) is OnwardError
    assert "rank 1 (process 101 on h) failed unexpectedly: KeyError: x" in str(found)
    assert "/t.txt" in str(found)


@pytest.mark.parametrize(
    "said",
    [
        "Connection closed by peer [127.0.0.1]:29500",
        # torch's store
        "Failed to recv, got 0 bytes. Connection was likely closed.",
        "Failed to send, sent 0 bytes. Connection was likely closed.",
        # NCCL
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"
        " prematurely.",
    ],
)
def test_what_only_tells_of_another_ranks_end_is_an_echo(tmp_path: Path, said: str) -> None:
    found = explain([outcome(0), error(1, "DistNetworkError", said)], 2, 247, tmp_path)
    assert isinstance(found, LaunchError)
    assert "rank 0 (process 100 on h): killed" in str(found)


@pytest.mark.parametrize(
    ("code", "name"), [(247, "SIGKILL"), (245, "SIGSEGV"), (-9, "SIGKILL"), (1, "not known")]
)
def test_a_rank_without_a_last_word_was_killed(tmp_path: Path, code: int, name: str) -> None:
    outcomes = [error(0, "RuntimeError", ECHO), outcome(1), outcome(2, state="stopped")]
    found = explain(outcomes, 3, code, tmp_path)
    assert isinstance(found, LaunchError)
    assert "rank 1 (process 101 on h): killed" in str(found)
    assert name in str(found)


def test_processes_that_never_came_up_show_the_log(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    log.write_text("".join(f"line {n}\n" for n in range(40)))
    found = explain([], 2, 1, log)
    assert isinstance(found, LaunchError)
    assert "0 of 2 processes came up" in str(found)
    assert "line 39" in str(found)
    assert "line 20" not in str(found)


class SpecialError(DataError):
    """A kind that only its own module knows."""


def test_a_drivers_password_is_in_no_last_word(tmp_path: Path) -> None:
    told = OSError("https://me:canary@host/x: 403")
    Reporter(tmp_path, 0).failed(told)
    assert "https://me:***@host/x: 403" in read_outcomes(tmp_path)[0].message
    assert "canary" not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert "canary" not in blame(told, tmp_path).message


def test_a_reporter_leaves_the_nearest_known_kind(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, rank=3)
    reporter.enters("dapt")
    reporter.failed(SpecialError("row 9"))
    (left,) = read_outcomes(tmp_path)
    assert (left.rank, left.stage, left.kind, left.message) == (3, "dapt", "DataError", "row 9")
    assert isinstance(explain([left], 1, 3, tmp_path), DataError)


def test_a_reporter_keeps_the_traceback_of_the_unforeseen(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, rank=0)
    try:
        {}["gone"]
    except KeyError as caught:
        reporter.failed(caught)
    (left,) = read_outcomes(tmp_path)
    assert "KeyError: 'gone'" in Path(left.traceback).read_text()


def test_that_the_state_was_saved_comes_first(tmp_path: Path) -> None:
    said = "stopped after step 7 of 9, its state saved"
    stopped = outcome(2, state="stopped", message="SIGTERM")
    found = explain(
        [error(0, "RuntimeError", ECHO), error(1, "Preempted", said), stopped], 3, 75, tmp_path
    )
    assert isinstance(found, Preempted)
    assert str(found) == f"stage base: {said}"


def test_a_signal_that_came_before_the_state_was_saved_is_an_interruption(tmp_path: Path) -> None:
    stopped = Outcome(
        **outcome(1).model_dump() | {"state": "stopped", "message": "SIGTERM", "signal": 15}
    )
    found = explain([error(0, "RuntimeError", ECHO), stopped], 2, 143, tmp_path)
    assert isinstance(found, Interrupted)
    assert (found.exit_code, str(found)) == (143, "rank 1 (process 101 on h): SIGTERM")
    killed = outcome(0)
    assert isinstance(explain([killed, stopped], 2, 247, tmp_path), LaunchError)


def test_without_a_word_the_exit_code_tells_the_kind(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    log.write_text("no space left\n")
    found = explain([outcome(0), error(1, "RuntimeError", ECHO)], 2, 7, log)
    assert isinstance(found, ResourceError)
    assert "stage base: ended with exit code 7, and left no word" in str(found)
    assert "no space left" in str(found)
