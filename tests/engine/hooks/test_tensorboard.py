"""TensorBoard: its event files hold the numbers, and after a resume none of a lost step."""

from pathlib import Path
from typing import Any

import pytest

from engine.hooks import TensorBoardHook
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import on_ranks
from tests.engine.hooks.fakes import FakeBackend


def drive(folder: Path, first: int, last: int, offset: float = 0.0) -> None:
    hook, backend = TensorBoardHook(folder), FakeBackend()
    hook.on_start(backend, Progress(first - 1))
    for step in range(first, last + 1):
        numbers: dict[str, Any] = {"loss": step + offset, "grad_norm": None}
        hook.write("train", step, numbers | {"sources": {"domain": {"loss": 1}}})
    hook.on_end(backend, Progress(last))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def make_older(folder: Path) -> None:
    """TensorBoard reads files in the order of their names, which hold seconds."""
    (events,) = folder.glob("events*")
    stamp = events.name.split(".")[3]
    events.rename(folder / events.name.replace(stamp, f"{int(stamp) - 60:010d}"))


def test_every_number_has_its_path(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drive(tmp_path, 1, 2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["1 learning/loss", "5 sources/loss/domain"]
    assert scalars(tmp_path, "1 learning/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("resumed", [1, 3])
def test_events_after_the_checkpoint_are_purged(tmp_path: Path, resumed: int) -> None:
    drive(tmp_path, 1, 5)
    make_older(tmp_path)
    drive(tmp_path, resumed, 4, offset=0.5)
    kept = [(step, float(step)) for step in range(1, resumed)]
    again = [(step, step + 0.5) for step in range(resumed, 5)]
    assert scalars(tmp_path, "1 learning/loss") == kept + again


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    def act(ranks: Any) -> None:
        hook, backend = TensorBoardHook(tmp_path / str(ranks.rank())), FakeBackend(ranks)
        hook.on_start(backend, Progress())
        hook.on_end(backend, Progress())

    assert on_ranks(2, act) == [None, None]
    assert [folder.name for folder in tmp_path.iterdir()] == ["0"]
