"""Delivery to a GPU by a stand-in for torch.cuda: which calls are made, in which order and thread.

What the calls do on a GPU it cannot show.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.batches import Batches
from engine.delivery import Delivery, delivery_to
from engine.protocols import Batch

GPU = torch.device("cuda", 3)


class Calls:
    """What was called, by which thread."""

    def __init__(self) -> None:
        self.made: list[tuple[str, ...]] = []

    def note(self, *words: str) -> None:
        self.made.append((threading.current_thread().name, *words))


class FakeTensor:
    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self.name = name

    def pin_memory(self) -> "FakeTensor":
        self._calls.note("pin", self.name)
        return FakeTensor(self._calls, f"pinned {self.name}")

    def to(self, device: torch.device, *, non_blocking: bool) -> "FakeTensor":
        assert non_blocking
        self._calls.note("copy", self.name, str(device))
        return FakeTensor(self._calls, f"{device} {self.name}")

    def record_stream(self, stream: "FakeStream") -> None:
        self._calls.note("record", self.name, stream.name)


class FakeStream:
    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self.name = name

    def wait_event(self, event: "FakeEvent") -> None:
        self._calls.note("wait", self.name, event.of)


class FakeEvent:
    of = "nobody"

    def record(self, stream: FakeStream) -> None:
        self.of = stream.name
        stream._calls.note("event", stream.name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()

    @contextlib.contextmanager
    def entered(what: Any) -> Iterator[None]:
        made.note("enter", getattr(what, "name", str(what)))
        yield
        made.note("leave", getattr(what, "name", str(what)))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(made, f"side of {device}"))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: FakeStream(made, f"main of {device}")
    )
    return made


def test_copies_are_made_by_the_thread_and_waited_for_by_the_readers_stream(calls: Calls) -> None:
    def make(step: int) -> list[Batch]:
        tensors: Any = {"tokens": FakeTensor(calls, f"tokens of {step}")}
        return [Batch(tensors, 5, 7, (5,), (7,))]

    with Batches(make, 0, 1, delivery=Delivery(GPU)) as batches:
        (batch,) = next(batches)
    assert (batch.count, batch.tokens, batch.source_counts) == (5, 7, (5,))
    tokens: Any = batch.tensors["tokens"]
    assert tokens.name == "cuda:3 pinned tokens of 0"
    side, main = "side of cuda:3", "main of cuda:3"
    assert [words for thread, *words in calls.made if thread == "batches"] == [
        ["enter", "cuda:3"],
        ["enter", side],
        ["pin", "tokens of 0"],
        ["copy", "pinned tokens of 0", "cuda:3"],
        ["event", side],
        ["leave", side],
        ["leave", "cuda:3"],
    ]
    assert [words for thread, *words in calls.made if thread != "batches"] == [
        ["wait", main, side],
        ["record", "cuda:3 pinned tokens of 0", main],
    ]


def test_an_error_comes_out_of_a_delivery_as_it_is(calls: Calls) -> None:
    def make(step: int) -> list[Batch]:
        raise ValueError("row 2")

    with (
        Batches(make, 0, 1, delivery=Delivery(GPU)) as batches,
        pytest.raises(ValueError, match="row 2"),
    ):
        next(batches)
    assert calls.made == []


def test_on_the_cpu_nothing_is_copied() -> None:
    assert delivery_to(torch.device("cpu")) is None
    one = [Batch({"tokens": torch.zeros(2)}, 1, 1, (1,), (1,))]
    with Batches(lambda step: one, 0, 1) as batches:
        assert next(batches) is one
