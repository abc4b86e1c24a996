"""TensorBoard: its event files hold the numbers, and after a resume none of a lost step."""

from pathlib import Path
from typing import Any

import pytest

from engine.board.session import Session, Told
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
    for events in list(folder.glob("events*")):
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


SETTINGS: dict[str, Any] = {"lr": 1e-3, "penalties": "l2_sp", "steps": 6}


def session(**changes: Any) -> Session:
    return Session("dapt, run", SETTINGS | changes, {"1 recipe": "# dapt\n"})


def start(folder: Path, step: int, told: Session, last: int) -> None:
    """A start of the stage at ``step``; it ends after step ``last`` of 6."""
    hook, backend = TensorBoardHook(folder, told), FakeBackend()
    hook.on_start(backend, Progress(step))
    for now in range(step + 1, last + 1):
        hook.write("train", now, {"loss": float(now)})
        hook.write("forgetting", now, {"general": {"change": 0.1, "low": -0.1, "high": 0.2}})
    hook.on_end(backend, Progress(last))
    if last == 6:
        hook.finish(backend, last)


def plugin(folder: Path, tag: str) -> list[Any]:
    """Every event of a tag in the files themselves, nothing purged."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        value
        for path in sorted(folder.glob("events*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == tag
    ]


def test_a_session_is_told_once_however_often_the_stage_is_started(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

    start(tmp_path, 0, session(), 4)
    assert plugin(tmp_path, metadata.SESSION_END_INFO_TAG) == []
    start(tmp_path, 2, session(), 6)
    (began,) = plugin(tmp_path, metadata.SESSION_START_INFO_TAG)
    told = metadata.parse_session_start_info_plugin_data(began.metadata.plugin_data.content)
    assert told.group_name == "dapt, run"
    assert told.hparams["lr"].number_value == SETTINGS["lr"]
    assert told.hparams["penalties"].string_value == "l2_sp"
    (ended,) = plugin(tmp_path, metadata.SESSION_END_INFO_TAG)
    ending = metadata.parse_session_end_info_plugin_data(ended.metadata.plugin_data.content)
    assert ending.status == STATUS_SUCCESS
    (page,) = plugin(tmp_path, "1 recipe/text_summary")
    assert page.tensor.string_val == [b"# dapt\n"]


def test_what_is_told_once_is_there_whenever_the_process_is_killed(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import metadata as charts
    from tensorboard.plugins.hparams import metadata

    hook: Any = TensorBoardHook(tmp_path, session())
    hook.on_start(FakeBackend(), Progress())
    assert Told.read(tmp_path).digest == session().digest
    assert len(plugin(tmp_path, metadata.SESSION_START_INFO_TAG)) == 1
    hook.write("train", 1, {"loss": 1.0})
    assert Told.read(tmp_path).tags == {"1 learning/loss"}
    assert len(plugin(tmp_path, charts.CONFIG_SUMMARY_TAG)) == 1
    hook.on_end(FakeBackend(), Progress(1))


def test_what_a_resumed_stage_has_changed_is_told(tmp_path: Path) -> None:
    start(tmp_path, 0, session(), 4)
    start(tmp_path, 2, session(lr=5e-4), 4)
    assert len(plugin(tmp_path, "1 recipe/text_summary")) == 2
    assert Told.read(tmp_path).settings == SETTINGS | {"lr": 5e-4}


def test_a_stage_that_begins_anew_tells_all_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start(tmp_path, 0, session(), 4)
    start(tmp_path, 0, session(), 2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("1 recipe/text_summary")] == [0]
    assert scalars(tmp_path, "1 learning/loss") == [(1, 1.0), (2, 2.0)]


def test_the_charts_are_of_tags_that_are_there(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    start(tmp_path, 0, session(), 4)
    charts = layout_pb2.Layout()
    latest = plugin(tmp_path, metadata.CONFIG_SUMMARY_TAG)[-1]
    assert latest.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    charts.ParseFromString(latest.tensor.string_val[0])
    learning, forgetting = charts.category
    assert learning.chart[0].multiline.tag[0].startswith("^1\\ learning/loss")
    (series,) = forgetting.chart[0].margin.series
    assert {series.value, series.lower, series.upper} <= Told.read(tmp_path).tags
    # A resumed run knows the tags of the one before it: its charts are not fewer.
    start(tmp_path, 4, session(), 5)
    assert plugin(tmp_path, metadata.CONFIG_SUMMARY_TAG)[-1] == latest


def test_what_is_not_known_is_shown_under_its_own_name(tmp_path: Path) -> None:
    hook, backend = TensorBoardHook(tmp_path), FakeBackend()
    hook.on_start(backend, Progress())
    hook.write("novel", 3, {"deep": {"list": [1, 2]}, "word": "warned", "nothing": None})
    hook.on_end(backend, Progress(3))
    assert scalars(tmp_path, "novel/deep/list/1") == [(3, 2.0)]
    (word,) = plugin(tmp_path, "novel/word/text_summary")
    assert word.tensor.string_val == [b"warned"]
