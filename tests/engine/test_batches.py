"""The prefetch thread: order, errors, and an end that leaves nothing running."""

import threading
import time

import pytest

from engine.batches import Batches
from engine.protocols import Batch


def one(step: int) -> list[Batch]:
    return [Batch({}, step, 0, (), ())]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "batches"]


def test_gives_each_step_once_in_order():
    with Batches(one, 3, 8) as batches:
        assert [batch[0].count for batch in batches] == [3, 4, 5, 6, 7]
        with pytest.raises(StopIteration):
            next(batches)
    assert threads() == []


def test_an_error_comes_out_at_its_own_step():
    def make(step: int) -> list[Batch]:
        if step == 2:
            raise ValueError("row 2")
        return one(step)

    with Batches(make, 0, 5) as batches:
        assert [next(batches)[0].count for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="row 2"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


def test_works_ahead_but_no_further_than_the_depth():
    made: list[int] = []

    def make(step: int) -> list[Batch]:
        made.append(step)
        return one(step)

    with Batches(make, 0, 100, depth=2) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        # One was read, two wait, and one more waits for room.
        assert made == [0, 1, 2, 3]


def test_closing_early_ends_the_thread():
    batches = Batches(one, 0, 10**9)
    next(batches)
    batches.close()
    assert threads() == []
    with pytest.raises(StopIteration):
        next(batches)
