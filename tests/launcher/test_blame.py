"""Which hosts a failure is put down to, by what the ranks have left."""

from pathlib import Path

import pytest

from configs.errors import Cause, LaunchError, OnwardError, ResourceError, note_step, step_of
from engine.watchdog import VERDICT, Sign
from launcher.blame import blame, host_of_rank
from launcher.hosts import Host
from launcher.outcome import Outcome, Reporter, explain, read_outcomes

HOSTS = (Host("node-1", 2), Host("node-2", 2))
ECHO = "Connection closed by peer [10.0.0.1]:2222"


def leave(folder: Path, rank: int, **facts: object) -> Outcome:
    facts = {"host": f"node-{1 + rank // 2}", "pid": 100 + rank, "stage": "dapt"} | facts
    outcome = Outcome(rank=rank, **facts)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    (folder / f"rank-{rank}.json").write_text(outcome.model_dump_json())
    return outcome


def echo(folder: Path, *ranks: int) -> None:
    for rank in ranks:
        leave(folder, rank, state="error", kind="RuntimeError", message=ECHO)


def failure(folder: Path, code: int = 1) -> tuple[str, tuple[str, ...]]:
    error = explain(read_outcomes(folder), 4, code, folder / "log")
    found = blame(error, folder, HOSTS)
    return found.kind, found.hosts


def test_a_killed_rank_is_its_hosts(tmp_path: Path) -> None:
    echo(tmp_path, 0, 1, 2)
    leave(tmp_path, 3)
    assert failure(tmp_path, 247) == ("killed", ("node-2",))


def test_an_exception_is_its_hosts_and_keeps_its_step(tmp_path: Path) -> None:
    echo(tmp_path, 1, 2, 3)
    leave(
        tmp_path, 0, state="error", kind="KeyError", message="x", cause=Cause("unforeseen"), step=7
    )
    assert failure(tmp_path) == ("crash", ("node-1",))
    error = explain(read_outcomes(tmp_path), 4, 1, tmp_path)
    found = blame(error, tmp_path, HOSTS)
    assert (found.step, found.stage, found.sameness) == (7, "dapt", "KeyError: x")


def test_ranks_that_never_came_up_are_their_hosts(tmp_path: Path) -> None:
    echo(tmp_path, 0, 1)
    assert failure(tmp_path) == ("lost", ("node-2",))


def test_what_every_host_has_is_nobodys(tmp_path: Path) -> None:
    for rank in range(4):
        leave(tmp_path, rank)
    assert failure(tmp_path) == ("killed", ())


def sign(folder: Path, rank: int, count: int, *, tells: bool) -> None:
    made = Sign(rank=rank, host=f"node-{1 + rank // 2}", pid=100 + rank, count=count)
    (folder / f"sign-{rank}.json").write_text(made.model_dump_json())
    if tells:
        (folder / f"hang-rank-{rank}.json").write_text(made.model_dump_json())


@pytest.mark.parametrize(
    ("behind", "is_mute", "hosts"),
    [(1, True, ("node-1",)), (2, False, ("node-2",)), (None, False, ())],
)
def test_a_hang_is_put_down_to_who_is_mute_or_behind(
    tmp_path: Path, behind: int | None, is_mute: bool, hosts: tuple[str, ...]
) -> None:
    (tmp_path / VERDICT).touch()
    for rank in range(4):
        sign(tmp_path, rank, 7 - (rank == behind), tells=not (is_mute and rank == behind))
        leave(tmp_path, rank, state="error", kind="LaunchError", message="nothing has gone on")
    found = blame(LaunchError("nothing has gone on"), tmp_path, HOSTS)
    assert (found.kind, found.hosts) == ("hang", hosts)


@pytest.mark.parametrize(
    ("rank", "calls_itself", "name"),
    [
        (3, "node-1", "node-1"),
        (0, "node-2.cluster", "node-2"),
        (0, "other", "node-1"),
        (2, "", "node-2"),
        (4, "", ""),
    ],
)
def test_a_host_is_known_by_its_own_name_or_by_its_slots(
    rank: int, calls_itself: str, name: str
) -> None:
    assert host_of_rank(rank, calls_itself, HOSTS) == name


def test_addresses_are_not_cut_at_their_dots() -> None:
    hosts = (Host("10.0.0.1", 1), Host("10.0.0.2", 1))
    assert host_of_rank(1, "10.0.0.9", hosts) == "10.0.0.2"


def test_causes_and_steps_come_through_a_ranks_outcome(tmp_path: Path) -> None:
    full = ResourceError("/d: no space", Cause("space", "/d", 99))
    note_step(full, 5)
    Reporter(tmp_path, 0).failed(full)
    found = explain(read_outcomes(tmp_path), 1, 7, tmp_path)
    assert isinstance(found, ResourceError)
    assert (found.cause, step_of(found)) == (Cause("space", "/d", 99), 5)


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError(), "memory"), (KeyError("x"), "unforeseen")]
)
def test_an_exception_has_a_cause_too(tmp_path: Path, error: Exception, kind: str) -> None:
    Reporter(tmp_path, 0).failed(error)
    found = explain(read_outcomes(tmp_path), 1, 1, tmp_path)
    assert isinstance(found, OnwardError)
    assert found.cause == Cause(kind)  # type: ignore[arg-type]
