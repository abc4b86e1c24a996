"""The watchdog: silence is found, progress and others' progress are not; who is behind is told."""

import threading
from pathlib import Path

import pytest

from engine import watchdog
from engine.watchdog import Sign, Watchdog, describe


class Left:
    """What a process would have left with."""

    def __init__(self) -> None:
        self.words: list[tuple[str, int]] = []
        self.happened = threading.Event()

    def __call__(self, why: str, code: int) -> None:
        self.words.append((why, code))
        self.happened.set()


def sign(rank: int, count: int, phase: str = "forward", **more: object) -> Sign:
    facts = {
        "rank": rank,
        "host": "h",
        "pid": 100 + rank,
        "count": count,
        "phase": phase,
        "step": 7,
    }
    return Sign.model_validate(facts | more)


def put(folder: Path, *records: Sign, signs: tuple[Sign, ...] = ()) -> Path:
    for record in records:
        (folder / f"hang-rank-{record.rank}.json").write_text(record.model_dump_json())
    for published in signs:
        (folder / f"sign-{published.rank}.json").write_text(published.model_dump_json())
    return folder


def test_silence_ends_the_process_with_its_place_and_its_stacks(tmp_path: Path) -> None:
    left = Left()
    with Watchdog(tmp_path, 0.3, (0, 1), left) as dog:
        dog.enter("data", 3)
        dog.enter("forward", 3)
        assert left.happened.wait(30)
        stacks = (tmp_path / "hang-rank-0.txt").read_text()
    ((why, code),) = left.words
    assert code == 5
    assert "nothing has gone on for 0.3 s" in why
    assert "every rank that answers is in 'forward' after 3 steps" in why
    assert "test_silence_ends_the_process" in stacks
    assert (tmp_path / "hang").exists()
    assert not (tmp_path / "hang-rank-0.txt").exists()


@pytest.mark.parametrize("has_verdict", [True, False])
def test_in_a_later_launchs_folder_no_word_is_left(tmp_path: Path, has_verdict: bool) -> None:
    if has_verdict:
        (tmp_path / "hang").touch()
    left = Left()
    dog = Watchdog(tmp_path, 0.3, (0, 1), left)
    with dog:
        for path in tmp_path.glob("sign-*"):
            path.unlink()
        dog.is_wanted = lambda: False
        dog.enter("data", 3)
        assert left.happened.wait(30)
    assert left.words == [("another launch runs here now; this rank ends", 5)]
    assert {path.name for path in tmp_path.iterdir()} == ({"hang"} if has_verdict else set())


def test_who_goes_on_is_left_alone(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, 10.0, (0, 2), Left())
    silences = []
    with dog:
        # By a phase, by a sign within a phase, and half as much by another rank's sign.
        for act in (lambda: dog.enter("forward", 1), watchdog.alive, lambda: None):
            act()
            for _ in range(3):
                dog._listen(3.0)
            silences.append(dog._silent)
        put(tmp_path, signs=(sign(1, 5),))
        dog._listen(3.0)
        silences.append(dog._silent)
        dog._listen(5.0)
        silences.append(dog._silent)
    assert silences == [6.0, 6.0, 15.0, 5.0, 10.0]


def test_another_ranks_verdict_is_everybodys(tmp_path: Path) -> None:
    left = Left()
    with Watchdog(tmp_path, 60.0, (0, 1), left):
        (tmp_path / "hang").touch()
        assert left.happened.wait(30)
    assert left.words[0][1] == 5


def test_a_loss_that_the_main_thread_does_not_notice_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_UNTIL_THE_MAIN_THREAD_RAISES", 0.2)
    left = Left()
    with Watchdog(tmp_path, 60.0, (0, 2), left, lambda: True):
        assert left.happened.wait(30)
    assert left.words[0][1] == 1
    assert "connection closed by peer" in left.words[0][0]


def test_time_in_which_the_process_was_suspended_does_not_count(tmp_path: Path) -> None:
    class Clock:
        """Jumps by an hour between two looks."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 3600.0
            return self.now

    left = Left()
    dog = Watchdog(tmp_path, 60.0, (0, 1), left)
    real = watchdog.time
    watchdog.time = Clock()  # type: ignore[assignment]
    try:
        dog._period = 0.01
        with dog:
            assert not left.happened.wait(0.3)
    finally:
        watchdog.time = real


def test_a_mute_rank_comes_first_with_its_state(tmp_path: Path) -> None:
    stopped = "stopped (state T)"
    put(
        tmp_path,
        sign(0, 12, "backward", silent=9.0, neighbours={1: stopped}),
        sign(2, 12, "backward"),
        signs=(sign(0, 11), sign(1, 10), sign(2, 11)),
    )
    lines = describe(tmp_path, 9.0).splitlines()
    assert lines[1] == (
        "rank 1 (process 101 on h) gives no sign: it is stopped (state T); "
        "it was last seen in 'forward' after 7 steps"
    )
    assert lines[2] == "every rank that answers is in 'backward' after 7 steps"


def test_who_has_begun_the_fewest_phases_is_behind(tmp_path: Path) -> None:
    put(tmp_path, sign(0, 12, "backward"), sign(1, 11, silent=8.5), sign(2, 12, "backward"))
    lines = describe(tmp_path, 9.0).splitlines()
    assert lines[1] == (
        "rank 1 (process 101 on h) is behind: in 'forward' after 7 steps, silent for 8.5 s"
    )
    assert lines[2] == "the others wait in 'backward' after 7 steps"
    watchdog.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
